"""The guest service: what host and guest agent say to each other beside containerd's Task API."""
