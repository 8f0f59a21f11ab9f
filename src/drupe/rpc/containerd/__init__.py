"""containerd's messages, from its published .proto files."""
