"""How pods meet the network: built-in bridge networks, CNI, given namespaces, published ports, names and policies."""
