"""Tokens of an issuer: which count, which do not, and where the keys that check them come from."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.server
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from medray.config import ConfigError
from medray.sections.service import AccessSection
from medray.serving import tokens
from medray.serving.problems import Refused
from medray.serving.tokens import Tokens, parse_signers

ISSUER, AUDIENCE = "https://issuer.example", "medray"


class Clock:
    """Seconds that a test moves on."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@cache
def private(kind: str) -> Any:
    if kind in ("RS", "other", "new"):
        return rsa.generate_private_key(65537, 2048)
    curves = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1}
    return ec.generate_private_key(curves[kind]()) if kind in curves else ed25519.Ed25519PrivateKey.generate()


def public(kind: str, kid: str | None = None, **more: Any) -> dict[str, Any]:
    """A public key as the issuer shows it."""
    key = private(kind).public_key()
    family = {"E": jwt.algorithms.ECAlgorithm, "O": jwt.algorithms.OKPAlgorithm}.get(
        kind[0], jwt.algorithms.RSAAlgorithm
    )
    tree: dict[str, Any] = json.loads(family.to_jwk(key))
    tree.pop("key_ops", None)
    return tree | ({} if kid is None else {"kid": kid}) | more


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    tree = {"iss": ISSUER, "aud": AUDIENCE, "sub": "anna@clinic.example", "exp": now + 300, "role": "user", **changes}
    return {name: value for name, value in tree.items() if value is not None}


def signed(
    kind: str = "RS",
    algorithm: str = "RS256",
    kid: str | None = "one",
    headers: dict[str, Any] | None = None,
    **changes: Any,
) -> str:
    return jwt.encode(claims(**changes), private(kind), algorithm, {**({"kid": kid} if kid else {}), **(headers or {})})


def coded(tree: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(tree).encode()).rstrip(b"=").decode()


def key_set(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


def access(where: Path | str, **changes: Any) -> AccessSection:
    return AccessSection(jwks=str(where), issuer=ISSUER, audience=AUDIENCE, **changes)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "jwks.json"
    file.write_bytes(key_set(public("RS", "one")))
    return file


def code_of(asked: Tokens, token: str) -> str:
    with pytest.raises(Refused) as caught:
        asked.caller(token)
    refused = caught.value
    assert refused.hint
    assert len(token) < 8 or token not in f"{refused.detail}{refused.hint}"
    assert refused.status != 401 or "Bearer" in refused.headers["WWW-Authenticate"]
    return refused.code


def test_a_token_and_its_pseudonym(file: Path) -> None:
    name, role = Tokens(access(file)).caller(signed())
    digest = hashlib.sha256(f"{ISSUER}\nanna@clinic.example".encode()).hexdigest()
    assert (name, role) == (f"oidc:{digest[:16]}", "user")


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [
        *(("RS", f"{family}{bits}") for family in ("RS", "PS") for bits in (256, 384, 512)),
        ("ES256", "ES256"),
        ("ES384", "ES384"),
        ("ES512", "ES512"),
        ("OKP", "EdDSA"),
    ],
)
@pytest.mark.parametrize("kid", ["one", None])
def test_every_asymmetric_signature_is_taken(file: Path, kind: str, algorithm: str, kid: str | None) -> None:
    file.write_bytes(key_set(public("other", "two"), public(kind, kid)))
    asked = Tokens(access(file))
    assert asked.caller(signed(kind, algorithm, kid))[1] == "user"
    head, body, signature = signed(kind, algorithm, kid).split(".")
    flipped = ("B" if signature[10] == "A" else "A").join((signature[:10], signature[11:]))
    assert code_of(asked, f"{head}.{body}.{flipped}") == "bad_token"
    assert code_of(asked, f"{head}.{coded(claims(role='admin'))}.{signature}") == "bad_token"


def test_the_token_does_not_choose_how_it_is_checked(file: Path) -> None:
    asked = Tokens(access(file))
    key = private("RS").public_key()
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    for secret in (pem, pem.strip(), json.dumps(public("RS", "one")).encode(), b""):
        start = f"{coded({'alg': 'HS256', 'kid': 'one', 'typ': 'JWT'})}.{coded(claims(role='admin'))}"
        tag = hmac.new(secret, start.encode(), "sha256").digest()
        assert code_of(asked, f"{start}.{base64.urlsafe_b64encode(tag).rstrip(b'=').decode()}") == "bad_token"
    for none in ("none", "None", "NONE", "", None, ["RS256"], {"RS256": 1}, 5):
        assert code_of(asked, f"{coded({'alg': none, 'kid': 'one'})}.{coded(claims())}.") == "bad_token"
        assert code_of(asked, f"{coded({'alg': none, 'kid': 'one'})}.{coded(claims())}.AAAA") == "bad_token"
    own = public("other", "own")
    for name, value in (("jwk", own), ("jku", "https://evil.example/jwks"), ("x5u", "https://evil.example/c")):
        assert code_of(asked, signed("other", headers={name: value})) == "bad_token"
    assert code_of(asked, signed(headers={"crit": ["exp"], "exp": 1})) == "bad_token"


def test_a_secret_in_the_key_set_checks_nothing(file: Path) -> None:
    secret = base64.urlsafe_b64encode(b"k" * 64).rstrip(b"=").decode()
    file.write_bytes(key_set({"kty": "oct", "k": secret, "kid": "one"}, public("RS", "two")))
    token = jwt.encode(claims(), b"k" * 64, "HS256", {"kid": "one"})
    assert code_of(Tokens(access(file)), token) == "bad_token"


def test_keys_that_are_not_for_this_are_left_out(file: Path) -> None:
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505
    short = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(weak.public_key()))
    whole = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(private("RS")))
    useless = [
        short,
        whole,
        public("RS", use="enc"),
        public("RS", alg="RSA-OAEP"),
        {"kty": "RSA"},
        {"kty": []},
        "x",
        None,
    ]
    useless += [{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}, {"kty": "RSA", "n": 5, "e": "AQAB"}]
    with pytest.raises(ValueError, match="no public key"):
        parse_signers(key_set(*useless))  # type: ignore[arg-type]
    assert len(parse_signers(key_set(*useless, public("RS", "one")))) == 1  # type: ignore[arg-type]
    file.write_bytes(key_set(public("RS", "one", alg="PS256")))
    assert code_of(Tokens(access(file)), signed()) == "unknown_signing_key", "the key says what it is for"


NOW = int(time.time())


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"exp": NOW - 60}, "expired_token"),
        ({"exp": None}, "bad_token"),
        ({"exp": "soon"}, "bad_token"),
        ({"exp": float("inf")}, "bad_token"),
        ({"nbf": NOW + 3600}, "early_token"),
        ({"iss": "https://evil.example"}, "wrong_issuer"),
        ({"iss": ISSUER + "/"}, "wrong_issuer"),
        ({"iss": None}, "bad_token"),
        ({"aud": "other"}, "wrong_audience"),
        ({"aud": ["other", "another"]}, "wrong_audience"),
        ({"aud": None}, "bad_token"),
        ({"sub": None}, "bad_token"),
        ({"sub": ""}, "bad_token"),
        ({"role": None}, "no_role"),
        ({"role": "root"}, "no_role"),
        ({"role": "ADMIN"}, "no_role"),
        ({"role": {"admin": True}}, "no_role"),
        ({"role": [["admin"]]}, "no_role"),
    ],
)
def test_claims_that_do_not_count(file: Path, changes: dict[str, Any], code: str) -> None:
    assert code_of(Tokens(access(file)), signed(**changes)) == code


def test_clocks_may_differ_by_half_a_minute(file: Path) -> None:
    asked = Tokens(access(file))
    now = int(time.time())
    assert asked.caller(signed(exp=now - 20))
    assert asked.caller(signed(nbf=now + 20))
    assert code_of(asked, signed(exp=now - 40)) == "expired_token"


@pytest.mark.parametrize(
    ("where", "tree", "role"),
    [
        ("role", {"role": "viewer"}, "viewer"),
        ("role", {"role": ["user", "billing", "admin", "viewer", 7, None]}, "admin"),
        ("realm_access.roles", {"realm_access": {"roles": ["offline", "user"]}, "role": "admin"}, "user"),
        ("https://medray.example/role", {"https://medray.example/role": "user", "role": None}, "user"),
        ("a.b.c", {"a": {"b": {"c": "viewer"}}}, "viewer"),
    ],
)
def test_where_the_role_is(file: Path, where: str, tree: dict[str, Any], role: str) -> None:
    assert Tokens(access(file, role_claim=where)).caller(signed(**tree))[1] == role


@pytest.mark.parametrize("tree", [{"a": "admin"}, {"a": ["admin"]}, {"a": {"b": None}}, {}])
def test_where_no_role_is(file: Path, tree: dict[str, Any]) -> None:
    assert code_of(Tokens(access(file, role_claim="a.b")), signed(**tree)) == "no_role"


def test_hostile_tokens(file: Path) -> None:
    asked = Tokens(access(file))
    deep = base64.urlsafe_b64encode(b"[" * 10_000).rstrip(b"=").decode()
    digits = base64.urlsafe_b64encode(b'{"alg":' + b"9" * 9_000 + b"}").rstrip(b"=").decode()
    hostile = ["", ".", "..", "a.b", "a.b.c.d", "\0.\0.\0", "ä.ö.ü", "\ud800.a.b", "a.b.c\n", "A" * 10_000_000]
    hostile += ["A" * 6_000_000 + "." + "B" * 6_000_000 + ".C", f"{deep}.e30.AA", f"{digits}.e30.AA", "e30.e30.AA"]
    hostile += [signed() + "A" * 20_000, " " + signed()]
    hostile += [f"{coded({'alg': 'RS256', 'kid': kid})}.e30.AA" for kid in (5, [], {}, True)]
    began = time.monotonic()
    assert {code_of(asked, token) for token in hostile} == {"bad_token"}
    assert time.monotonic() - began < 2


def test_a_file_of_keys_is_read_again(file: Path) -> None:
    clock = Clock()
    asked = Tokens(access(file), clock)
    token = signed("new", kid="new")
    assert code_of(asked, token) == "unknown_signing_key"
    file.write_bytes(key_set(public("new", "new")))
    clock.now += 1
    assert asked.caller(token)
    assert code_of(asked, signed()) == "unknown_signing_key"
    file.write_bytes(b"{")
    clock.now += 1
    assert asked.caller(token), "what was read last counts"
    assert asked.trouble


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"keys": 5}', b'{"keys": []}', b'{"keys": "abc"}', b"[" * 99_999]
)
def test_a_file_that_is_no_key_set(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"jwks\.json"):
        Tokens(access(file))


@pytest.mark.parametrize(
    "where",
    [
        "http://issuer.example/jwks",
        "http://127.0.0.1.evil.example/",
        "ftp://127.0.0.1/x",
        "file:///x",
        "https://",
        "https://[x",
        "http://localhost@evil.example/",
        "/nowhere/jwks.json",
    ],
)
def test_places_that_are_not_asked(where: str) -> None:
    with pytest.raises(ConfigError, match="jwks"):
        Tokens(access(where))


class Issuer:
    """An address with a key set, and how often it was asked."""

    def __init__(self) -> None:
        self.content, self.status, self.asked, self.slow = b"", 200, 0, threading.Event()
        self.slow.set()
        issuer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += 1
                issuer.slow.wait(10)
                self.send_response(issuer.status)
                self.send_header("Location", "/elsewhere")
                self.end_headers()
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(issuer.content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    yield issuer
    issuer.slow.set()
    issuer.server.shutdown()
    issuer.server.server_close()


def test_keys_are_fetched_once_and_again_for_a_new_one(issuer: Issuer) -> None:
    clock = Clock()
    issuer.content = key_set(public("RS", "one"))
    asked = Tokens(access(issuer.url), clock)
    assert issuer.asked == 0
    for _ in range(5):
        assert asked.caller(signed())
    assert issuer.asked == 1
    issuer.content = key_set(public("RS", "one"), public("new", "new"))
    for _ in range(5):
        assert code_of(asked, signed("new", kid="new")) == "unknown_signing_key"
    assert issuer.asked == 1, "at most once every 30 s"
    clock.now += tokens.RENEW_S
    assert asked.caller(signed("new", kid="new"))
    assert issuer.asked == 2


@pytest.mark.parametrize("status", [500, 302, 404])
def test_an_outage_keeps_the_keys(issuer: Issuer, status: int) -> None:
    clock = Clock()
    issuer.content, issuer.status = key_set(public("RS", "one")), status
    asked = Tokens(access(issuer.url), clock)
    assert code_of(asked, signed()) == "keys_unavailable"
    assert asked.trouble
    assert issuer.url not in asked.trouble
    issuer.status = 200
    clock.now += tokens.RENEW_S
    assert asked.caller(signed())
    assert not asked.trouble
    issuer.status = status
    for _ in range(3):
        clock.now += tokens.RENEW_S
        assert code_of(asked, signed("new", kid="new")) == "unknown_signing_key"
        assert asked.caller(signed())


@pytest.mark.parametrize("content", [b"", b"<html>", b'{"keys": []}', b" " * ((1 << 20) + 1)])
def test_an_answer_that_is_no_key_set_keeps_the_keys(issuer: Issuer, content: bytes) -> None:
    clock = Clock()
    issuer.content = key_set(public("RS", "one"))
    asked = Tokens(access(issuer.url), clock)
    assert asked.caller(signed())
    issuer.content = content
    clock.now += tokens.RENEW_S
    assert code_of(asked, signed(kid="other")) == "unknown_signing_key"
    assert asked.trouble
    assert asked.caller(signed())


def until(true: Callable[[], bool]) -> None:
    """Wait until something is so."""
    ends = time.monotonic() + 10
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_a_withdrawn_key_ends_within_the_hour_and_nobody_waits(issuer: Issuer) -> None:
    clock = Clock()
    issuer.content = key_set(public("RS", "one"), public("new", "new"))
    asked = Tokens(access(issuer.url), clock)
    assert asked.caller(signed("new", kid="new"))
    issuer.content = key_set(public("RS", "one"))
    issuer.slow.clear()
    clock.now += tokens.STALE_S
    began = time.monotonic()
    assert asked.caller(signed("new", kid="new")), "the keys are fetched aside"
    assert time.monotonic() - began < 1
    issuer.slow.set()

    def ended() -> bool:
        try:
            asked.caller(signed("new", kid="new"))
        except Refused as refused:
            return refused.code == "unknown_signing_key"
        return False

    until(ended)
    assert issuer.asked == 2


def test_a_slow_issuer_holds_some_for_a_time_and_others_not(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "FETCH_S", 1.0)
    clock = Clock()
    issuer.content = key_set(public("RS", "one"))
    asked = Tokens(access(issuer.url), clock)
    known, unknown = signed(), signed(kid="x")
    assert asked.caller(known)
    issuer.slow.clear()
    clock.now += tokens.RENEW_S
    codes: list[str] = []
    threads = [threading.Thread(target=lambda: codes.append(code_of(asked, unknown))) for _ in range(30)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    assert asked.caller(known), "who has a known key does not wait"
    until(lambda: len(codes) == 30 - tokens.WAITING)
    assert time.monotonic() - began < 0.9, "no more than some wait"
    for thread in threads:
        thread.join()
    assert time.monotonic() - began < 5
    assert codes == ["unknown_signing_key"] * 30
    assert issuer.asked == 2


def test_many_at_a_start_all_wait(issuer: Issuer) -> None:
    issuer.content = key_set(public("RS", "one"))
    asked, token = Tokens(access(issuer.url)), signed()
    issuer.slow.clear()
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(asked.caller(token)[1])) for _ in range(30)]
    for thread in threads:
        thread.start()
    issuer.slow.set()
    for thread in threads:
        thread.join()
    assert found == ["user"] * 30
    assert issuer.asked == 1


def test_no_issuer_at_all() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        port = server.server_port
    assert code_of(Tokens(access(f"http://127.0.0.1:{port}/jwks")), signed()) == "keys_unavailable"


def test_a_proxy_is_not_asked_for_this_machine(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "http_proxy", "http://127.0.0.1:9")
    issuer.content = key_set(public("RS", "one"))
    assert Tokens(access(issuer.url)).caller(signed())
