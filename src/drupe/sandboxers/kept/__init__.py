"""What all kinds share whose tasks the keeper holds: streams, signals, ends, recovery, namespaces."""
