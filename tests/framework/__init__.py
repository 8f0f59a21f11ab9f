"""The harness of the tests: what a test may ask of the host (`probes`), what it must leave behind (`leaks`), a real
daemon in a network namespace of its own (`daemon`), images made once (`images`)."""
