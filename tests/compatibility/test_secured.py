"""A node with certificates, and users with tokens: made with openssl, as docs/security.md says."""

import base64
import hashlib
import hmac
import json
import pathlib
import subprocess
import time
from collections.abc import Callable, Iterator

import grpc
import pytest
from carillon.admin.v1 import admin_pb2 as admin
from carillon.admin.v1 import admin_pb2_grpc
from carillon.v1 import chat_pb2 as chat
from carillon.v1 import chat_pb2_grpc
from client import refused
from cluster import Cluster

SECRET = bytes(range(32))
LIFETIME_SECONDS = 600


def openssl(*arguments: str, data: bytes = b"") -> bytes:
    run = subprocess.run(["openssl", *arguments], input=data, capture_output=True, check=True)
    return run.stdout


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Authority:
    """Issues certificates into a directory."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.ca, self.ca_key = directory / "ca.pem", directory / "ca.key"
        subject = ["-subj", "/CN=carillon-ca", "-days", "30"]
        key = ["-newkey", "ed25519", "-nodes", "-keyout", str(self.ca_key)]
        openssl("req", "-x509", *key, *subject, "-out", str(self.ca))

    def issue(self, owner: str, *hosts: str) -> tuple[pathlib.Path, pathlib.Path]:
        """The certificate of an owner's URI and its key."""
        name = owner.rsplit("/", 2)[-2] + "-" + owner.rsplit("/", 1)[-1]
        key, request = self.directory / f"{name}.key", self.directory / f"{name}.csr"
        certificate, extensions = self.directory / f"{name}.pem", self.directory / f"{name}.ext"
        names = ",".join([f"URI:{owner}", *hosts])
        extensions.write_text(
            f"subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\n"
        )
        # Whoever checks it knows the curve, unlike Ed25519, everywhere.
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        openssl("req", "-new", *curve, "-subj", f"/CN={name}", "-keyout", str(key),
                "-out", str(request))
        openssl("x509", "-req", "-in", str(request), "-CA", str(self.ca), "-CAkey",
                str(self.ca_key), "-days", "30", "-out", str(certificate), "-extfile",
                str(extensions))
        return certificate, key


class Signers:
    """Signs tokens with a key of each kind, and publishes what they are checked with."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.rsa, self.ed25519 = directory / "rsa.pem", directory / "ed25519.pem"
        openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048",
                "-out", str(self.rsa))
        openssl("genpkey", "-algorithm", "ED25519", "-out", str(self.ed25519))
        self.scratch = directory / "message"

    def jwks(self) -> str:
        modulus = openssl("rsa", "-in", str(self.rsa), "-modulus", "-noout")
        modulus = bytes.fromhex(modulus.decode().strip().removeprefix("Modulus="))
        public = openssl("pkey", "-in", str(self.ed25519), "-pubout", "-outform", "DER")
        keys = [
            {"kty": "oct", "kid": "HS256", "k": base64url(SECRET)},
            {"kty": "RSA", "kid": "RS256", "n": base64url(modulus), "e": "AQAB"},
            {"kty": "OKP", "crv": "Ed25519", "kid": "EdDSA", "x": base64url(public[-32:])},
        ]
        return json.dumps({"keys": keys})

    def token(self, kind: str, **claims: object) -> str:
        header = {"alg": kind, "kid": kind, "typ": "JWT"}
        parts = (base64url(json.dumps(part).encode()) for part in (header, claims))
        message = ".".join(parts).encode()
        match kind:
            case "HS256":
                signature = hmac.digest(SECRET, message, hashlib.sha256)
            case "RS256":
                signature = openssl("dgst", "-sha256", "-sign", str(self.rsa), data=message)
            case "EdDSA":
                self.scratch.write_bytes(message)
                signature = openssl("pkeyutl", "-sign", "-rawin", "-inkey", str(self.ed25519),
                                    "-in", str(self.scratch))
            case _:
                raise AssertionError(kind)
        return f"{message.decode()}.{base64url(signature)}"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> Signers:
    return Signers(tmp_path_factory.mktemp("signers"))


@pytest.fixture(scope="module")
def secured(authority: Authority, signers: Signers) -> Iterator[Cluster]:
    """One node."""
    certificate, key = authority.issue("carillon://compatibility/node/n1", "IP:127.0.0.1")
    jwks = authority.directory / "jwks.json"
    jwks.write_text(signers.jwks())
    sections = (
        f'[tls]\nca = "{authority.ca}"\ncertificate = "{certificate}"\nkey = "{key}"\n'
        f'[auth]\njwks = "{jwks}"\n'
    )
    with Cluster(nodes=1, extra=sections, dev=False) as running:
        yield running


@pytest.fixture
def connect(secured: Cluster, authority: Authority) -> Iterator[Callable[..., grpc.Channel]]:
    """Opens channels, with a certificate or without one, that are closed with the test."""
    opened = []

    def connect(owner: str | None = None) -> grpc.Channel:
        own = (None, None)
        if owner is not None:
            certificate, key = authority.issue(owner)
            own = (key.read_bytes(), certificate.read_bytes())
        credentials = grpc.ssl_channel_credentials(authority.ca.read_bytes(), *own)
        opened.append(grpc.secure_channel(secured.nodes[0].client, credentials))
        return opened[-1]

    yield connect
    for channel in opened:
        channel.close()


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


@pytest.mark.parametrize("kind", ["HS256", "RS256", "EdDSA"])
def test_a_user_chats_with_a_token(connect, signers: Signers, kind: str) -> None:
    stub = chat_pb2_grpc.ChatStub(connect())
    token = signers.token(kind, sub="alice", exp=int(time.time()) + LIFETIME_SECONDS)
    request = chat.SendRequest(
        conversation_id="direct:alice:bob",
        client_message_id=f"m-{kind}",
        content=chat.Content(text=chat.Text(body="hello")),
    )
    # The token says who it is; nothing else has to.
    sent = stub.Send(request, metadata=bearer(token), timeout=10)
    assert sent.seq > 0
    with refused(grpc.StatusCode.PERMISSION_DENIED, "NOT_ALLOWED"):
        stub.Send(request, metadata=[*bearer(token), ("carillon-user", "bob")], timeout=10)


def test_who_shows_nothing_is_refused(connect, signers: Signers) -> None:
    stub = chat_pb2_grpc.ChatStub(connect())
    ask = chat.ListConversationsRequest()
    with refused(grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_MISSING"):
        stub.ListConversations(ask, metadata=[("carillon-user", "alice")], timeout=10)
    old = signers.token("RS256", sub="alice", exp=int(time.time()) - LIFETIME_SECONDS)
    with refused(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED"):
        stub.ListConversations(ask, metadata=bearer(old), timeout=10)
    with refused(grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_MISSING"):
        admin_pb2_grpc.AdminStub(connect()).GetCluster(admin.GetClusterRequest(), timeout=10)


def test_an_operator_administers_with_a_certificate(connect) -> None:
    stub = admin_pb2_grpc.AdminStub(connect("carillon://compatibility/admin/olga"))
    cluster = stub.GetCluster(admin.GetClusterRequest(), timeout=10)
    assert cluster.cluster_name == "compatibility"
    stub = admin_pb2_grpc.AdminStub(connect("carillon://compatibility/viewer/vera"))
    stub.GetCluster(admin.GetClusterRequest(), timeout=10)
    with refused(grpc.StatusCode.PERMISSION_DENIED, "NOT_ALLOWED"):
        stub.RotateJoinToken(admin.RotateJoinTokenRequest(), timeout=10)
