"""What a push sends and what it leaves, in bytes."""

import hashlib
import json

from amnesia.manifest import read_manifest
from commands import done


def test_only_the_touched_shard_and_small_files_are_sent(hub, base, output):
    touched = read_manifest(output).base.files
    assert len(touched) == 1
    shards = {name for name in hub.files("org/base") if name.endswith(".safetensors")}
    assert len(shards) > 3
    hub.reset()
    result = json.loads(done("push", output, "ada/edited", "--json"))
    assert result["n_copied"] == len(shards) - 1
    small = sum(len(c) for name, c in hub.files("ada/edited").items() if not name.endswith(".safetensors"))
    assert [line.split("/")[-1] for line in hub.lines("PUT *")] == [
        hashlib.sha256(hub.files("ada/edited")[touched[0].file]).hexdigest()
    ]
    requests = sum(request.up for request in hub.requests if "/api/" in request.line or ".git/" in request.line)
    assert hub.up - requests == touched[0].size
    # Small files travel in base64, and their names and first bytes are announced.
    assert requests < 2 * small + 20_000
    assert (
        hub.files("ada/edited").items()
        >= {name: hub.files("org/base")[name] for name in shards - {touched[0].file}}.items()
    )


def test_a_hub_that_cannot_copy_gets_the_files(hub, base, output):
    hub.fail("POST *lfs-files/duplicate", status=403, times=9)
    done("push", output, "ada/edited")
    shards = {name for name in hub.files("org/base") if name.endswith(".safetensors")}
    assert len(hub.lines("PUT *")) == len(shards)
