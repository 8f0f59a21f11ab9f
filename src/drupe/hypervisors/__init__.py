"""Hypervisors: who runs a machine. One contract (contract.py), one file for each driver."""
