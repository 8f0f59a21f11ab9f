"""The messages of Kubernetes' Container Runtime Interface, from its published .proto file."""
