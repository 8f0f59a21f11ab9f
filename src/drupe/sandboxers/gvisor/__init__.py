"""The gVisor kind: pods whose system calls are served by a kernel in user space, runsc's sentry."""
