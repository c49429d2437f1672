"""Identities over real sockets: our Workload API, the official SPIFFE library, and an agent that misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import time

import grpc
import grpc.aio
import pytest
from spiffe import WorkloadApiClient, X509Source
from spiffe._proto import workload_pb2, workload_pb2_grpc
from spiffe.workloadapi.errors import FetchJwtSvidError

from konsil.errors import ConfigError, IdentityError
from konsil.identity import source as source_module
from konsil.identity.authority import Authority
from konsil.identity.source import SvidSource
from konsil.identity.svid import der_from_pem
from konsil.identity.tls import check_peer, client_context, peer_chain, refresh, server_context
from konsil.identity.workload_api import WorkloadApi

pytestmark = pytest.mark.real

NODE = "spiffe://lyon.example/node"


@pytest.fixture
def lyon(tmp_path):
    return Authority.create(tmp_path / "lyon", "lyon.example")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w.sock"


async def _until(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for is seen from outside and wakes nobody
            await asyncio.sleep(0.02)


async def test_the_official_library_is_served(lyon, path):
    def use(address):
        with X509Source(socket_path=address, timeout_in_seconds=10) as official:
            context = official.get_x509_context()
        with WorkloadApiClient(address) as official_client:
            bundles = official_client.fetch_x509_bundles()
            with pytest.raises(FetchJwtSvidError, match="UNIMPLEMENTED"):
                official_client.fetch_jwt_svid({"anybody"})
        return context.default_svid, bundles

    async with WorkloadApi(lyon, path, ttl_s=60) as api:
        svid, bundles = await asyncio.to_thread(use, api.address)
    assert str(svid.spiffe_id) == NODE
    assert svid.private_key.public_key() == svid.leaf.public_key()
    (bundle,) = bundles.bundles
    assert bundle.trust_domain.name == "lyon.example"
    (authority,) = bundle.x509_authorities
    svid.leaf.verify_directly_issued_by(authority)


async def test_the_official_library_follows_a_rotation(lyon, path):
    def two(address):
        with X509Source(socket_path=address, timeout_in_seconds=10) as official:
            first = official.get_x509_context().default_svid.leaf
            deadline_s = time.monotonic() + 5
            while (leaf := official.get_x509_context().default_svid.leaf) == first:
                assert time.monotonic() < deadline_s
                time.sleep(0.05)  # the official source has no way to wait for a change
            return first, leaf

    async with WorkloadApi(lyon, path, ttl_s=2) as api:
        first, second = await asyncio.to_thread(two, api.address)
    assert first.serial_number != second.serial_number


async def test_a_request_without_the_standards_header_is_refused(lyon, path):
    async with (
        WorkloadApi(lyon, path, ttl_s=60),
        grpc.aio.insecure_channel(f"unix:{path}", options=source_module._OPTIONS) as channel,
    ):
        stub = workload_pb2_grpc.SpiffeWorkloadAPIStub(channel)
        for metadata in ((), (("workload.spiffe.io", "false"),)):
            for call in (
                stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=metadata, timeout=5),
                stub.FetchX509Bundles(workload_pb2.X509BundlesRequest(), metadata=metadata, timeout=5),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call.read()
                assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_only_the_nodes_user_can_open_the_socket_and_nothing_is_left_of_it(lyon, path, tmp_path):
    before = {each.name for each in tmp_path.iterdir()}
    async with WorkloadApi(lyon, path, ttl_s=60):
        status = path.stat()
        assert stat.S_ISSOCK(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == 0o600
        assert {each.name for each in tmp_path.iterdir()} - before == {path.name}
    assert {each.name for each in tmp_path.iterdir()} == before


async def test_svids_that_live_two_seconds_are_followed_without_a_restart(lyon, path):
    async with WorkloadApi(lyon, path, ttl_s=2) as api, SvidSource.open(api.address) as source:
        await source.wait_ready(5)
        seen = [source.svid]
        for _ in range(3):
            generation = source.generation
            assert await source.changed(generation, 5) > generation
            seen.append(source.svid)
            assert source.svid.not_after_s > time.time()
        assert source.problem == ""
    assert len({svid.chain_der for svid in seen}) == 4
    assert len({svid.key_der for svid in seen}) == 4


async def test_a_restarted_agent_is_found_again_and_the_last_svid_is_kept_meanwhile(lyon, path):
    async with SvidSource.open(f"unix://{path}") as source:
        async with WorkloadApi(lyon, path, ttl_s=60):
            await source.wait_ready(5)
            first = source.svid
        await _until(lambda: "no such socket" in source.problem)
        assert source.svid == first
        assert source.bundle == lyon.bundle
        async with WorkloadApi(lyon, path, ttl_s=60):
            assert await source.changed(1, 10) == 2
            assert source.svid != first
            assert source.problem == ""


async def test_a_source_may_start_before_its_agent(lyon, path):
    async with SvidSource.open(f"unix://{path}") as source:
        with pytest.raises(IdentityError, match="no such socket"):
            await source.wait_ready(0.2)
        async with WorkloadApi(lyon, path, ttl_s=60):
            await source.wait_ready(10)
            assert source.svid.spiffe_id == NODE


async def test_a_socket_that_a_crash_left_behind_is_replaced(lyon, path):
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(str(path))
        crashed.listen()
    assert path.exists()
    async with WorkloadApi(lyon, path, ttl_s=60) as api, SvidSource.open(api.address) as source:
        await source.wait_ready(5)


async def test_a_second_program_cannot_take_a_socket_that_is_served(lyon, path):
    async with WorkloadApi(lyon, path, ttl_s=60) as api, SvidSource.open(api.address) as source:
        with pytest.raises(ConfigError, match="another program serves it"):
            async with WorkloadApi(lyon, path, ttl_s=60):
                pass
        await source.wait_ready(5)


class Agent(workload_pb2_grpc.SpiffeWorkloadAPIServicer):
    """Another maker's agent, on the official library's stubs: answers as its script says, then is silent."""

    def __init__(self, *script):
        self.script = list(script)
        self.calls = 0
        self.headers = []

    async def FetchX509SVID(self, _request, context):  # noqa: N802 - the standard's name
        self.calls += 1
        self.headers.append(dict(context.invocation_metadata()).get("workload.spiffe.io"))
        step = self.script.pop(0) if self.script else None
        if isinstance(step, grpc.StatusCode):
            await context.abort(step, "as the script says")
        if step is not None:
            yield step
        await asyncio.Event().wait()

    @contextlib.asynccontextmanager
    async def at(self, path):
        server = grpc.aio.server()
        workload_pb2_grpc.add_SpiffeWorkloadAPIServicer_to_server(self, server)
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        try:
            yield self
        finally:
            await server.stop(None)


def _answer(authority, *svids):
    return workload_pb2.X509SVIDResponse(
        svids=[
            workload_pb2.X509SVID(
                spiffe_id=svid.spiffe_id,
                x509_svid=b"".join(svid.chain_der),
                x509_svid_key=svid.key_der,
                bundle=b"".join(der_from_pem(authority.bundle)),
                hint=f"hint {number}",
            )
            for number, svid in enumerate(svids)
        ],
        crl=[b"revocations"],
        federated_bundles={"spiffe://metz.example": b"foreign"},
    )


async def test_an_agent_that_does_not_know_the_node_yet_is_asked_again(lyon, path):
    script = (
        grpc.StatusCode.PERMISSION_DENIED,
        workload_pb2.X509SVIDResponse(),
        _answer(lyon, lyon.issue(), lyon.issue("/b")),
    )
    async with Agent(*script).at(path) as agent, SvidSource.open(f"unix://{path}") as source:
        with pytest.raises(IdentityError, match="PERMISSION_DENIED"):
            await source.wait_ready(0.03)
        await source.wait_ready(10)
        assert source.svid.spiffe_id == NODE
        assert source.bundle == lyon.bundle
        assert agent.headers == ["true"] * 3


async def test_an_agent_that_stops_renewing_is_asked_again_on_a_new_connection(lyon, path):
    script = [_answer(lyon, lyon.issue(ttl_s=1)), _answer(lyon, lyon.issue(ttl_s=60))]
    async with Agent(*script).at(path) as agent, SvidSource.open(f"unix://{path}") as source:
        await source.wait_ready(5)
        assert await source.changed(1, 10) == 2
        assert agent.calls == 2
        assert source.svid.not_after_s > time.time() + 30


async def test_an_agent_that_hangs_is_given_up_in_time(path, monkeypatch):
    monkeypatch.setattr(source_module, "FIRST_ANSWER_S", 0.2)
    async with Agent().at(path) as agent, SvidSource.open(f"unix://{path}") as source:
        with pytest.raises(IdentityError, match="did not answer in time"):
            await source.wait_ready(1)
        assert agent.calls >= 2


async def test_something_else_on_the_socket_is_told_apart(path):
    async def shout(_reader, writer):
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_unix_server(shout, path), SvidSource.open(f"unix://{path}") as source:
        with pytest.raises(IdentityError, match="UNAVAILABLE"):
            await source.wait_ready(1.5)


async def test_an_open_connection_goes_on_through_a_rotation_and_a_new_one_shows_the_new_svid(
    lyon, path, tmp_path
):
    metz = Authority.create(tmp_path / "metz", "metz.example")
    directory = {NODE: lyon.bundle, "spiffe://metz.example/node": metz.bundle}
    async with (
        WorkloadApi(lyon, path, ttl_s=2) as api,
        WorkloadApi(metz, tmp_path / "m.sock", ttl_s=60) as other,
        SvidSource.open(api.address) as at_lyon,
        SvidSource.open(other.address) as at_metz,
    ):
        await at_lyon.wait_ready(5)
        await at_metz.wait_ready(5)
        context = server_context(at_lyon, [metz.bundle])
        stop = at_lyon.on_change(lambda: refresh(context, at_lyon))

        async def echo(reader, writer):
            check_peer(writer.get_extra_info("ssl_object"), directory)
            with contextlib.suppress(asyncio.IncompleteReadError):
                while True:
                    writer.write(await reader.readexactly(1))
                    await writer.drain()
            writer.close()

        async def dial():
            reader, writer = await asyncio.open_connection(
                *accepting.sockets[0].getsockname(), ssl=client_context(at_metz, lyon.bundle)
            )
            who, _ = check_peer(writer.get_extra_info("ssl_object"), {NODE: lyon.bundle})
            assert who == NODE
            return reader, writer, peer_chain(writer.get_extra_info("ssl_object"))

        async def close(writer):
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

        async with await asyncio.start_server(echo, "127.0.0.1", 0, ssl=context) as accepting:
            reader, writer, first = await dial()
            generation = at_lyon.generation
            assert await at_lyon.changed(generation, 5) > generation
            writer.write(b"?")
            assert await asyncio.wait_for(reader.readexactly(1), 5) == b"?"
            _, again, second = await dial()
            assert second != first
            await close(writer)
            await close(again)
        stop()


async def test_nothing_stays_open_after_source_and_api_are_closed(lyon, path):
    async def once():
        async with WorkloadApi(lyon, path, ttl_s=60) as api, SvidSource.open(api.address) as source:
            await source.wait_ready(5)

    def open_sockets():
        links = []
        for each in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the folder of descriptors itself
            with contextlib.suppress(OSError):
                links.append(os.readlink(f"/proc/self/fd/{each}"))  # noqa: PTH115 - not a real link
        return sum(link.startswith("socket:") for link in links)

    def alone():
        return asyncio.all_tasks() == {asyncio.current_task()}

    await once()
    await _until(alone)  # gRPC's own tasks end a moment after the last answer
    before = open_sockets()
    for _ in range(3):
        await once()
    await _until(lambda: alone() and open_sockets() <= before)
