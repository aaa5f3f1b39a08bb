"""Who may ask: a key or a token names a caller and a role; on loopback, without keys, everybody is the owner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medray.config import ConfigError
from medray.sections.service import ServeSection
from medray.serving.keys import LOCAL, PREFIX, ROLES, KeyFile, Role, default_path
from medray.serving.problems import Refused
from medray.serving.tokens import Tokens, refused

__all__ = ["ROLES", "Access", "Caller", "Role", "check_start", "require", "warnings"]

WHERE = "send X-API-Key: mk_... or Authorization: Bearer ..."
MAKE = "medray key add NAME makes one"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the name of a key, a pseudonym of a token's bearer, or `local`."""

    id: str
    role: Role

    def may(self, role: Role) -> bool:
        """Whether what `role` may is allowed to the caller."""
        return ROLES.index(self.role) >= ROLES.index(role)


class Access:
    """Tells callers from strangers; may be asked from several threads."""

    def __init__(self, cfg: ServeSection) -> None:
        """Read the keys.

        Raises:
            ConfigError: the key file or the issuer's key set cannot be used.
        """
        self._keys = _key_file(cfg)
        self._tokens = Tokens(cfg.access) if cfg.access.jwks else None
        self._open = cfg.on_loopback and self._tokens is None

    @property
    def may_wait(self) -> bool:
        """Whether `caller` may wait for the network, for some seconds: then it belongs into a thread."""
        return self._tokens is not None

    def troubles(self) -> tuple[str, ...]:
        """What cannot be read or fetched at the moment, without paths; what was read before counts meanwhile."""
        keys, tokens = self._keys.trouble, self._tokens.trouble if self._tokens else ""
        return (*(["the key file cannot be used"] if keys else []), *([tokens] if tokens else []))

    def caller(self, headers: Mapping[str, str]) -> Caller:
        """Who sent a request with these headers (names in lower case).

        Raises:
            Refused: nobody that is known; see also `Tokens.caller`.
        """
        if self._open:
            # Once there are keys they are asked for, even after the last one is removed.
            self._open = not self._keys.entries()
        if self._open:
            return Caller(LOCAL, "admin")
        sent = _sent(headers)
        if self._tokens and not sent.startswith(PREFIX):
            return Caller(*self._tokens.caller(sent))
        entry = self._keys.find(sent)
        if entry is None:
            raise refused("bad_key", "the key is not known here", f"send it whole; {MAKE}")
        if entry.expired():
            raise refused("expired_key", "the key's time is over", MAKE)
        return Caller(entry.id, entry.role)


def _sent(headers: Mapping[str, str]) -> str:
    """The key or token of a request."""
    if key := headers.get("x-api-key", "").strip():
        return key
    scheme, _, token = headers.get("authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer" and (token := token.strip()):
        return token
    raise Refused(401, "no_key", "the request has neither a key nor a token", WHERE, {"WWW-Authenticate": "Bearer"})


def require(caller: Caller, role: Role) -> None:
    """Refuse a caller who may not do what `role` may.

    Raises:
        Refused: 403 `role_too_low`.
    """
    if not caller.may(role):
        detail = f"this needs the role {role}; yours is {caller.role}"
        raise Refused(403, "role_too_low", detail, f"ask whoever runs the service for a key with the role {role}")


def check_start(cfg: ServeSection) -> None:
    """Whether the service may start so.

    Raises:
        ConfigError: others could reach it and nobody would be asked for a key, or keys cannot be read.
    """
    keys = _key_file(cfg)
    if cfg.access.jwks:
        Tokens(cfg.access)
    elif not cfg.on_loopback and all(entry.expired() for entry in keys.entries()):
        where = f" --keys '{cfg.access.keys}'" if cfg.access.keys else ""
        reach = f"serve.host: at {cfg.host} others can reach the service, and there are no keys that count"
        raise ConfigError([f"{reach}; make one: medray key add NAME{where}, or set serve.access.jwks"])


def warnings(cfg: ServeSection) -> tuple[str, ...]:
    """What whoever starts the service so should know."""
    if cfg.on_loopback or cfg.certificate:
        return ()
    plain = "without serve.certificate keys and images travel in plain text"
    return (f"{plain}, unless a proxy with TLS is in front of {cfg.host}:{cfg.port}",)


def _key_file(cfg: ServeSection) -> KeyFile:
    named = cfg.access.keys
    # A file that is named and not there is a slip of the pen, which must not open the service to everybody.
    try:
        return KeyFile(named or default_path(), must_exist=named is not None)
    except ConfigError as error:
        raise ConfigError([f"serve.access.keys: {mistake}" for mistake in error.mistakes]) from None
