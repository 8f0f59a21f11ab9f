//! Tasks, memory, signals and system calls.
