"""Tokens of OpenID Connect: signed by an issuer's private key, checked with its public ones.

Only asymmetric signatures count, and which of them a key may check is read from the key, never from the token
(RFC 8725, 3.1): a token that says `none`, or HS256 with the public key for a secret, is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt

from medray.config import ConfigError
from medray.sections.service import LOOPBACK, AccessSection
from medray.serving.keys import ROLES, Role
from medray.serving.problems import Refused
from medray.serving.watched import Watched

FAMILIES: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("RSA", ""): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
"""Kind and curve of a key -> the signatures that it may check (RFC 7518, RFC 8037)."""
LEEWAY_S = 30
FETCH_S = 5.0
"""So long a token waits for the issuer's keys."""
RENEW_S = 30.0
"""They are asked for no more often."""
STALE_S = 3600.0
"""From this age on they are asked for again, aside, so that a key that the issuer withdrew does not count for ever."""
WAITING = 8
"""Tokens that wait at once; else those with made-up key ids could hold every thread of the service."""
MOST_BYTES = 1 << 20
MOST_KEYS = 100
LEAST_RSA_BITS = 2048
TOKEN = re.compile(r"[A-Za-z0-9_-]{1,16000}\.[A-Za-z0-9_-]{1,16000}\.[A-Za-z0-9_-]{1,16000}")
TOKEN_CHARACTERS = 16_384


@dataclass(frozen=True, slots=True)
class Signer:
    """A public key of the issuer."""

    kid: str | None
    algorithms: tuple[str, ...]
    key: Any


def parse_signers(content: bytes) -> tuple[Signer, ...]:
    """The usable keys of a JSON Web Key Set (RFC 7517); what is for encryption, secret or too short is left out.

    Raises:
        ValueError: it is none, or has no usable key.
    """
    try:
        items = json.loads(content)["keys"][:MOST_KEYS]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError('it is no key set: {"keys": [...]} is expected') from None
    if not (found := tuple(signer for item in items if (signer := _signer(item)))):
        raise ValueError("it has no public key that can check signatures")
    return found


def _signer(item: object) -> Signer | None:
    if not isinstance(item, dict) or "d" in item or item.get("use", "sig") != "sig":
        return None
    kind, curve, kid = item.get("kty"), item.get("crv", ""), item.get("kid")
    family = FAMILIES.get((kind, curve), ()) if isinstance(kind, str) and isinstance(curve, str) else ()
    algorithms = tuple(name for name in family if item.get("alg", name) == name)
    if not algorithms or not (kid is None or isinstance(kid, str)):
        return None
    try:
        key = jwt.PyJWK(item, algorithms[0]).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    return None if getattr(key, "key_size", 0) < LEAST_RSA_BITS and kind == "RSA" else Signer(kid, algorithms, key)


class Fetched:
    """The key set at an address: renewed aside, and kept through an outage; may be asked from several threads."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._url, self._clock = url, clock
        self._signers: tuple[Signer, ...] = ()
        self._lock, self._waiting = threading.Lock(), threading.Semaphore(WAITING)
        self._done = threading.Event()
        self._got = clock()
        self._asked = self._got - RENEW_S
        self.trouble = ""
        """Why the last attempt gave nothing; empty if it did."""

    def get(self, wait: bool) -> tuple[Signer, ...]:
        """The keys that there are; with `wait` newer ones, if the issuer may be asked again and answers in FETCH_S."""
        if wait and not self._signers:
            # Nobody is known without keys: at a start all wait.
            self._renew().wait(FETCH_S)
        elif wait and self._waiting.acquire(blocking=False):
            try:
                self._renew().wait(FETCH_S)
            finally:
                self._waiting.release()
        elif self._signers and self._clock() - self._got >= STALE_S:
            self._renew()
        return self._signers

    def _renew(self) -> threading.Event:
        """Ask in a thread of its own: a server that sends a byte now and then could hold a caller for ever."""
        with self._lock:
            if (now := self._clock()) - self._asked >= RENEW_S:
                self._asked, self._done = now, threading.Event()
                threading.Thread(target=self._fetch, args=(self._done,), name="jwks", daemon=True).start()
            return self._done

    def _fetch(self, done: threading.Event) -> None:
        import httpx

        try:
            self._signers = parse_signers(_download(self._url))
            self._got, self.trouble = self._clock(), ""
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            # Not its text, which may hold the address with a password in it.
            self.trouble = f"the issuer's keys cannot be fetched ({type(error).__name__})"
        finally:
            done.set()


def _download(url: str) -> bytes:
    import httpx

    ends, content = time.monotonic() + FETCH_S, b""
    own = urlsplit(url).hostname in LOOPBACK
    with httpx.stream("GET", url, timeout=FETCH_S, follow_redirects=False, trust_env=not own) as answer:
        answer.raise_for_status()
        for chunk in answer.iter_bytes():
            content += chunk
            if len(content) > MOST_BYTES or time.monotonic() > ends:
                raise ValueError("too large or too slow")
    return content


class Tokens:
    """Who a token stands for. It may wait FETCH_S for the issuer's keys: ask from a thread, or from several."""

    def __init__(self, access: AccessSection, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the keys if they are a file; an address is asked when the first token comes.

        Raises:
            ConfigError: `jwks` is no https address and no file of keys.
        """
        where = access.jwks or ""
        self._access = access
        self._source: Fetched | Watched[tuple[Signer, ...]]
        if "://" in where:
            _check_url(where)
            self._source = Fetched(where, clock)
        else:
            none: tuple[Signer, ...] = ()
            self._source = Watched(Path(where).expanduser(), parse_signers, none, True, clock)

    @property
    def trouble(self) -> str:
        """Why the issuer's keys cannot be had anew; empty if they can."""
        return self._source.trouble

    def caller(self, token: str) -> tuple[str, Role]:
        """Pseudonym and role of whom a token stands for.

        Raises:
            Refused: 401 for a token that does not count, 403 `no_role`, 503 `keys_unavailable`.
        """
        claims = self._claims(token)
        if not claims["sub"]:
            raise refused("bad_token", "the token's subject (sub) is empty", "ask your issuer for another token")
        return pseudonym(claims["iss"], claims["sub"]), _role(claims, self._access.role_claim)

    def _claims(self, token: str) -> dict[str, Any]:
        shape = "the bearer is neither a key nor a signed token (JWT)"
        if len(token) > TOKEN_CHARACTERS or not TOKEN.fullmatch(token):
            raise refused("bad_token", shape, "send a key (mk_...) or the issuer's token, whole")
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise refused("bad_token", shape, "send a key (mk_...) or the issuer's token, whole") from None
        algorithm, kid = str(header.get("alg")), header.get("kid")
        if "crit" in header or not any(algorithm in names for names in FAMILIES.values()):
            allowed = ", ".join(name for names in FAMILIES.values() for name in names)
            raise refused("bad_token", "the token is signed in a way that is not taken", f"taken are {allowed}")
        # Several keys may have one id, or none: the signature decides.
        for signer in self._candidates(algorithm, kid):
            try:
                return self._decode(token, signer.key, algorithm)
            except jwt.InvalidSignatureError:
                continue
        raise refused("bad_token", "the token's signature is not the issuer's", "ask your issuer for a new token")

    def _candidates(self, algorithm: str, kid: str | None) -> list[Signer]:
        """The keys that may have signed; of an id that nobody knows the issuer is asked."""
        for wait in (False, True):
            signers = self._source.get(wait) if isinstance(self._source, Fetched) else self._source.get()
            fit = [signer for signer in signers if algorithm in signer.algorithms]
            if found := [signer for signer in fit if kid is None or signer.kid in (kid, None)]:
                return found
        if not signers:
            detail, hint = "the issuer's public keys cannot be had at the moment", "try again, or use a key (mk_...)"
            raise Refused(503, "keys_unavailable", detail, hint, {"Retry-After": str(int(RENEW_S))})
        raise refused("unknown_signing_key", "no key of the issuer's has the token's kid", "ask for a new token")

    def _decode(self, token: str, key: Any, algorithm: str) -> dict[str, Any]:
        """The claims of a token whose signature is right; InvalidSignatureError if it is not."""
        try:
            return jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._access.audience,
                issuer=self._access.issuer,
                leeway=LEEWAY_S,
                options={"require": ["iss", "aud", "exp", "sub"]},
            )
        except jwt.InvalidSignatureError:
            raise
        except jwt.ExpiredSignatureError:
            raise refused("expired_token", "the token's time (exp) is over", "ask your issuer for a new one") from None
        except jwt.ImmatureSignatureError:
            raise refused("early_token", "the token does not count yet (nbf, iat)", "compare both clocks") from None
        except jwt.InvalidAudienceError:
            raise refused("wrong_audience", "the token is for another service (aud)", "ask for one for this") from None
        except jwt.InvalidIssuerError:
            raise refused("wrong_issuer", "the token is of another issuer (iss)", "see serve.access.issuer") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            detail = "the token's claims are not as they must be: iss, aud, exp and sub, nbf where there is one"
            raise refused("bad_token", detail, "ask your issuer for another token") from None


def refused(code: str, detail: str, hint: str) -> Refused:
    """A 401; what was sent is never in it."""
    return Refused(401, code, detail, hint, {"WWW-Authenticate": 'Bearer error="invalid_token"'})


def pseudonym(issuer: str, subject: str) -> str:
    """The caller's id of a token: its subject may be a person's e-mail address."""
    digest = hashlib.sha256(f"{issuer}\n{subject}".encode(errors="surrogatepass"))
    return f"oidc:{digest.hexdigest()[:16]}"


def _role(claims: Mapping[str, Any], where: str) -> Role:
    """The highest of medray's roles in the claim; its whole name comes before its parts, as some names have dots."""
    value: Any = claims
    for part in [where] if where in claims else where.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    names = value if isinstance(value, list) else [value]
    if not (found := [role for role in ROLES if role in names]):
        hint = f"the claim {where} (serve.access.role_claim) must say one of {', '.join(ROLES)}"
        raise Refused(403, "no_role", "the token gives its bearer no role here", hint)
    return found[-1]


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port == 0 or not (parts.scheme == "https" or (parts.scheme == "http" and host in LOOPBACK)):
        rule = "an address is https://..., or http:// of this machine; else give a file"
        raise ConfigError([f"serve.access.jwks: {rule}"])
