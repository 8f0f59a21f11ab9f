"""A registry client (OCI distribution spec v1.1): authentication, retries, errors in our own words.

Imported only when a registry is talked to, because the HTTP client is large.
"""

from __future__ import annotations

import ipaddress
import random
import re
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

from drupe.errors import DrupeError, InvalidArgument, NotFound, PermissionDenied, Unavailable
from drupe.images import media
from drupe.images.registry_auth import Credentials, find_credentials

TRIES = 5
_BACKOFF_S = 0.25
_MAX_WAIT_S = 30.0
_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_RETRY_STATUS = {408, 429, 500, 502, 503, 504}
_HUB_HOST = "registry-1.docker.io"
_MANIFEST_TYPES = ", ".join((media.OCI_INDEX, media.OCI_MANIFEST, media.DOCKER_INDEX, media.DOCKER_MANIFEST))
_CHALLENGE = re.compile(r'([a-zA-Z_]+)=(?:"([^"]*)"|([^\s,"]+))')
_MAX_ERROR_BYTES = 64 * 1024
_MAX_REDIRECTS = 5


@dataclass(frozen=True, slots=True)
class Call:
    """One request. path: from `/v2/`, or an absolute address the registry gave. scope: what a token must allow.
    ok: statuses that are answers, not errors."""

    method: str
    path: str
    scope: str
    ok: tuple[int, ...] = (200,)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None


class Registry:
    """One registry and one repository scope. Thread-safe; close it, or use it as a context manager.

    auth: "user:password", or None for the usual files. insecure: TLS certificates are not verified, and plain HTTP is
    used where TLS is not spoken. Registries on loopback are treated so by default, as Docker does.
    """

    def __init__(self, host: str, *, auth: str | None = None, insecure: bool = False, ca_file: str = "") -> None:
        self.host = host
        self._server = _HUB_HOST if host == "docker.io" else host
        self._insecure = insecure or (not ca_file and is_loopback(host))
        self._credentials: Credentials | None = find_credentials(host, auth)
        self._tokens: dict[str, str] = {}
        self._lock = threading.Lock()
        self._client = httpx.Client(
            verify=_tls_context(insecure=self._insecure, ca_file=ca_file),
            timeout=_TIMEOUT,
            follow_redirects=True,
            max_redirects=_MAX_REDIRECTS,
            headers={"User-Agent": "drupe", "Accept-Encoding": "identity"},
        )
        self._base = f"https://{self._server}"

    def __enter__(self) -> Registry:
        self._choose_scheme()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    # manifests and small things

    def manifest(self, repository: str, reference: str, *, scope: str) -> tuple[bytes, str, str]:
        """(bytes, media type, digest) of a manifest or index by tag or digest; verified when asked for by digest."""
        path = f"/v2/{repository}/manifests/{reference}"
        with self.stream(Call("GET", path, scope, headers={"Accept": _MANIFEST_TYPES})) as response:
            data = b""
            for chunk in response.iter_raw():
                data += chunk
                if len(data) > media.MAX_DOCUMENT_BYTES:
                    raise InvalidArgument(f"manifest {repository}:{reference} is larger than a manifest may be")
            said = response.headers.get("docker-content-digest", "")
            kind = response.headers.get("content-type", "").partition(";")[0].strip()
        got = media.digest_of(data)
        wanted = reference if reference.startswith("sha256:") else said
        if wanted.startswith("sha256:") and wanted != got:
            raise media.digest_mismatch(f"manifest {repository}:{reference}", wanted=wanted, got=got)
        return data, kind, got

    # requests

    def request(self, call: Call) -> httpx.Response:
        """One request with authentication and retries; the body is read. Raises as `stream`."""
        with self.stream(call) as response:
            response.read()
            return response

    @contextmanager
    def stream(self, call: Call) -> Iterator[httpx.Response]:
        """As `request`, with the body still to be read. Retries cover everything up to the response's headers.

        Raises PermissionDenied (401, 403), NotFound (404), InvalidArgument (other 4xx), Unavailable.
        """
        response = self._send(call)
        try:
            yield response
        except httpx.TransportError as error:
            raise Unavailable(f"registry {self.host}: connection lost", cause=_text(error)) from error
        finally:
            response.close()

    def _send(self, call: Call) -> httpx.Response:
        asked_for_token = False
        attempt = 0
        while True:
            attempt += 1
            response = self._try(call, last=attempt >= TRIES)
            if response is None:
                time.sleep(backoff_s(attempt))
            elif response.status_code in call.ok:
                return response
            elif response.status_code == 401 and not asked_for_token:
                asked_for_token = True
                self._answer_challenge(response, call.scope)
            elif response.status_code in _RETRY_STATUS and attempt < TRIES:
                response.close()
                time.sleep(_retry_after_s(response) or backoff_s(attempt))
            else:
                raise self._refused(response, f"{call.method} {urlsplit(call.path).path}")

    def _try(self, call: Call, *, last: bool) -> httpx.Response | None:
        """The response, or None when the connection failed and may be tried again."""
        url = urljoin(self._base, call.path)
        headers = dict(call.headers) | self._authorization(call.scope, url)
        request = self._client.build_request(call.method, url, headers=headers, content=call.content)
        try:
            return self._client.send(request, stream=True)
        except (httpx.TransportError, httpx.TooManyRedirects) as error:
            if last or isinstance(error, httpx.TooManyRedirects) or _is_certificate(error):
                raise self._unreachable(error) from error
            return None

    def _authorization(self, scope: str, url: str) -> dict[str, str]:
        """Credentials go to the registry alone, not where its upload or redirect addresses may lead."""
        if urlsplit(url).netloc != urlsplit(self._base).netloc:
            return {}
        with self._lock:
            token = self._tokens.get(scope)
        return {"Authorization": token} if token else {}

    # authentication (distribution docs: spec/auth/token.md, oauth.md)

    def _answer_challenge(self, response: httpx.Response, scope: str) -> None:
        challenge = response.headers.get("www-authenticate", "")
        response.read()
        kind, _, rest = challenge.partition(" ")
        if kind.lower() == "basic":
            if self._credentials is None:
                raise self._refused(response, "log in")
            header = httpx.BasicAuth(self._credentials.username, self._credentials.password)._auth_header
        elif kind.lower() == "bearer":
            params = {key.lower(): quoted or bare for key, quoted, bare in _CHALLENGE.findall(rest)}
            header = f"Bearer {self._fetch_token(params, scope)}"
        else:
            raise PermissionDenied(f"registry {self.host} asks for an unknown kind of login: {kind[:40]!r}")
        with self._lock:
            self._tokens[scope] = header

    def _fetch_token(self, params: dict[str, str], scope: str) -> str:
        realm = params.get("realm", "")
        parts = urlsplit(realm)
        if parts.scheme not in ("https", "http") or not parts.netloc:
            raise PermissionDenied(f"registry {self.host} names no valid token server: {realm[:100]!r}")
        if parts.scheme == "http" and self._base.startswith("https:"):
            raise PermissionDenied(f"registry {self.host} wants credentials sent in the clear to {realm[:100]!r}")
        query = {"service": params.get("service", ""), "scope": params.get("scope") or scope}
        try:
            answer = self._ask_token(realm, query)
        except httpx.TransportError as error:
            raise Unavailable(f"token server {parts.netloc} cannot be reached", cause=_text(error)) from error
        if answer.status_code != 200:
            raise self._refused(answer, f"get a token from {parts.netloc}")
        try:
            body = answer.json()
            return str(body.get("token") or body["access_token"])
        except (ValueError, KeyError, AttributeError):
            raise Unavailable(f"token server {parts.netloc} gave no token") from None

    def _ask_token(self, realm: str, query: dict[str, str]) -> httpx.Response:
        known = self._credentials
        if known is not None and known.identity_token:
            form = query | {"grant_type": "refresh_token", "refresh_token": known.identity_token, "client_id": "drupe"}
            return self._client.post(realm, data=form)
        auth = httpx.BasicAuth(known.username, known.password) if known is not None else None
        return self._client.get(realm, params={key: value for key, value in query.items() if value}, auth=auth)

    # scheme and errors

    def _choose_scheme(self) -> None:
        """Plain HTTP only if insecure and TLS is not spoken there."""
        if not self._insecure:
            return
        try:
            self._client.get(f"{self._base}/v2/", follow_redirects=False)
        except httpx.TransportError:
            self._base = f"http://{self._server}"

    def _unreachable(self, error: httpx.HTTPError) -> DrupeError:
        if _is_certificate(error):
            hint = "give its certificate authority with --ca-file, or use --insecure"
            return PermissionDenied(f"registry {self.host} has an untrusted certificate", cause=_text(error), hint=hint)
        hint = "is the name right and the registry up? a registry without TLS needs --insecure"
        return Unavailable(f"registry {self.host} cannot be reached", cause=_text(error), hint=hint)

    def _refused(self, response: httpx.Response, what: str) -> DrupeError:
        said = _error_text(response)
        response.close()
        status = response.status_code
        where = f"registry {self.host}"
        if status in (401, 403):
            hint = "log in, or give credentials with --auth user:password"
            return PermissionDenied(f"{where} refused to {what}", cause=said, hint=hint)
        if status == 404:
            return NotFound(f"{where} has no such thing: {what}", cause=said)
        if status in _RETRY_STATUS or status >= 500:
            return Unavailable(f"{where} answered {status} to {what}", cause=said)
        return InvalidArgument(f"{where} answered {status} to {what}", cause=said)


def is_loopback(host: str) -> bool:
    """Whether a registry (`name[:port]`) is on this machine's loopback."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and ":" in host else host
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _tls_context(*, insecure: bool, ca_file: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"]:
        import certifi  # only on hosts without certificates of their own

        context.load_verify_locations(certifi.where())
    if ca_file:
        try:
            context.load_verify_locations(ca_file)
        except (OSError, ssl.SSLError) as error:
            raise InvalidArgument(f"cannot use {ca_file} as certificate authority", cause=_text(error)) from None
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _is_certificate(error: Exception) -> bool:
    return "CERTIFICATE_VERIFY_FAILED" in str(error)


def backoff_s(attempt: int) -> float:
    """Exponential back-off with jitter, so that many clients do not come back together."""
    return min(_MAX_WAIT_S, _BACKOFF_S * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret


def _retry_after_s(response: httpx.Response) -> float:
    text = str(response.headers.get("retry-after", ""))
    return min(_MAX_WAIT_S, float(text)) if text.isdigit() else 0.0


def _error_text(response: httpx.Response) -> str:
    """What the registry says in its `errors` document, one line."""
    try:
        if not response.is_closed:
            response.read()
        body: Any = response.json()
        first = body["errors"][0]
        text = f"{first.get('code', '')}: {first.get('message', '')}"
    except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        text = f"HTTP {response.status_code}"
    return " ".join(text.split())[:300]


def _text(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
