"""A coordinator whose repository has a feature that it does not know."""

import grpc
import grpc.aio
import msgspec
import pytest

from coordinator.config import Config
from proto.tidemark.v1 import admin_pb2, common_pb2
from repository.layout import decode_config, parse_kit
from tests.fakes.agent import FakeAgent
from tests.integration.coordinator.serving import serving
from tests.integration.coordinator.test_backup import FILES, detail

pytestmark = pytest.mark.asyncio


def set_features(config: Config, kit: str, *features: str) -> None:
    path = config.repository / "config"
    changed = msgspec.structs.replace(decode_config(path.read_bytes()), features=list(features))
    path.chmod(0o600)
    path.write_bytes(changed.encode(parse_kit(kit).secret.signing_key()))


async def test_nobody_opens_a_session_or_joins_while_a_feature_is_unknown(config: Config) -> None:
    async with serving(config) as coordinator:
        agent = await coordinator.agent()
        agent.volume("data")
        token = await coordinator.token()
        await coordinator.back_up(agent, "data", FILES)
        export = await coordinator.admin.ExportRecoveryKit(admin_pb2.ExportRecoveryKitRequest())
    set_features(config, export.kit, "erasure-codes")
    async with serving(config) as coordinator:
        agent.address = coordinator.grpc
        async with agent.connected() as connection:
            await coordinator.order_backup("data")
            task = (await connection.next_message()).run_backup
            with pytest.raises(grpc.aio.AioRpcError) as opening:
                await connection.open_session(task)
        with pytest.raises(grpc.aio.AioRpcError) as joining:
            await FakeAgent.enrol(coordinator.grpc, token, "another")
        proof = await coordinator.verify(admin_pb2.VERIFY_DEPTH_DATA)
    set_features(config, export.kit)
    async with serving(config) as coordinator:
        # The refusal did not use the token up.
        await FakeAgent.enrol(coordinator.grpc, token, "another")
        agent.address = coordinator.grpc
        await coordinator.back_up(agent, "data", {"a": b"again"})

    for caught in (opening, joining):
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert detail(caught.value).hint == "upgrade Tidemark"
        assert "erasure-codes" in detail(caught.value).message
    assert (proof.phase, len(proof.verify.damaged)) == (common_pb2.PHASE_COMPLETED, 0)
