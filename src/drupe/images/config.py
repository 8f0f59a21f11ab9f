"""What an image says about how to run it, in drupe's own words."""

from __future__ import annotations

from drupe.images.media import ConfigDocument, ConfigSection, Health
from drupe.spec import HealthCheck, Spec

_NS = 1_000_000_000


class ImageConfig(Spec):
    """Defaults for containers of an image. env: "K=V". exposed_ports: "80/tcp". cwd: absolute, "/" when unset."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    cwd: str = "/"
    user: str = ""
    volumes: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()
    stop_signal: str = ""
    labels: dict[str, str] = {}
    healthcheck: HealthCheck | None = None
    os: str = ""
    architecture: str = ""
    variant: str = ""


def image_config(document: ConfigDocument) -> ImageConfig:
    """The typed form of an image configuration."""
    section = document.config or ConfigSection()
    return ImageConfig(
        entrypoint=tuple(section.entrypoint or ()),
        cmd=tuple(section.cmd or ()),
        env=tuple(section.env or ()),
        cwd=section.working_dir or "/",
        user=section.user or "",
        volumes=tuple(section.volumes or ()),
        exposed_ports=tuple(section.exposed_ports or ()),
        stop_signal=section.stop_signal or "",
        labels=dict(section.labels or {}),
        healthcheck=_health_check(section.healthcheck),
        os=document.os,
        architecture=document.architecture,
        variant=document.variant or "",
    )


def _health_check(health: Health | None) -> HealthCheck | None:
    """Docker's forms: ["NONE"], ["CMD", argv…], ["CMD-SHELL", line]; zero durations are the defaults."""
    match (health and health.test) or []:
        case ["CMD", *argv] if argv:
            pass
        case ["CMD-SHELL", *lines] if lines:
            argv = ["/bin/sh", "-c", " ".join(lines)]
        case _:
            return None
    assert health is not None  # noqa: S101 - for the type checker: a test was found in it
    default = HealthCheck(argv=())
    return HealthCheck(
        argv=tuple(argv),
        interval_s=health.interval / _NS or default.interval_s,
        timeout_s=health.timeout / _NS or default.timeout_s,
        start_period_s=health.start_period / _NS,
        retries=health.retries or default.retries,
    )
