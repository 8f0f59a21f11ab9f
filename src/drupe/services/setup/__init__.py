"""`drupe setup`: the configuration that lets containerd, Docker or Podman use drupe, written for the version found."""
