"""The microVM kind: each pod in a machine of its own, its containers made there by an agent."""
