"""The control service: the methods of spec/control.py, one module per kind of object, no decisions of its own."""

from drupe.services.control.service import ControlService

__all__ = ["ControlService"]
