"""The OCI runtime command line (`drupe-oci`): runc's words, for the bundles of Docker, Podman and containerd.

The native program sends its words here and carries out the answer: run these, write that, become this program. It keeps
no state, and neither does this face: a container's state is its program's own, below `--root`.
"""
