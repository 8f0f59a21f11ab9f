"""The appkernel kind: pods whose system calls are served by drupe's own kernel, one process for each pod."""
