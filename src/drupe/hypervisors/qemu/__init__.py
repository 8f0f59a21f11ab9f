"""QEMU: its command line (`driver`), and a machine that runs, over QMP (`machine`)."""
