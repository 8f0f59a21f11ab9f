"""What containerd asks of a runtime: its Task service, its shim's, and its Sandbox Controller."""
