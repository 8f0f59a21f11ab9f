"""The command line: each verb a thin call of the control API."""

from drupe.cli.startup import rest_collector

rest_collector()  # here, for this is the first of its modules to be imported
