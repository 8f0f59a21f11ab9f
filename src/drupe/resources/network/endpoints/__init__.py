"""How a machine gets at a pod's network: the interfaces of its namespace, each joined to a device of the VMM."""
