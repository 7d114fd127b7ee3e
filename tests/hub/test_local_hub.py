"""The Hub of the tests, driven by the real client: what it stores is what was sent, and its faults happen."""

import hashlib
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

WEIGHTS = bytes(range(256)) * 400
NAMES = {"config.json": b"{}", "model.safetensors": WEIGHTS}


@pytest.fixture
def api(hub):
    return HfApi()


def additions(files):
    return [CommitOperationAdd(name, content) for name, content in files.items()]


def commit(api, files, **options):
    return api.create_commit("ada/m", additions(files), commit_message="add", **options)


def test_repositories_are_created_once(api, hub):
    assert str(api.create_repo("ada/m", private=True)) == f"{hub.url}/ada/m"
    assert hub.repos["ada/m"].private
    assert str(api.create_repo("ada/m", exist_ok=True)) == f"{hub.url}/ada/m"
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("ada/m")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("bob/m")
    assert api.whoami()["name"] == "ada"


def test_what_is_committed_can_be_downloaded(api, hub, tmp_path):
    api.create_repo("ada/m")
    done = commit(api, NAMES)
    assert done.oid == api.model_info("ada/m").sha
    folder = Path(api.snapshot_download("ada/m", cache_dir=tmp_path))
    assert folder.name == done.oid
    for name, content in NAMES.items():
        assert (folder / name).read_bytes() == content
    (row,) = [row for row in api.model_info("ada/m", files_metadata=True).siblings if row.lfs]
    assert (row.rfilename, row.lfs.sha256) == ("model.safetensors", hashlib.sha256(WEIGHTS).hexdigest())


def test_an_unchanged_file_is_not_sent_again(api, hub):
    api.create_repo("ada/m")
    commit(api, NAMES)
    hub.reset()
    commit(api, {**NAMES, "config.json": b'{"a": 1}'})
    assert hub.lines("PUT *") == []
    assert hub.up < 3000
    api.create_commit("ada/m", [CommitOperationDelete("config.json")], commit_message="delete")
    assert hub.files("ada/m").keys() == {".gitattributes", "model.safetensors"}


def test_branches_and_pull_requests_leave_main_alone(api, hub):
    api.create_repo("ada/m")
    api.create_branch("ada/m", branch="edits/one")
    api.create_branch("ada/m", branch="edits/one", exist_ok=True)
    commit(api, {"a": b"1"}, revision="edits/one")
    done = commit(api, {"b": b"2"}, create_pr=True)
    assert (done.pr_num, done.pr_revision) == (1, "refs/pr/1")
    assert "a" in hub.files("ada/m", "edits/one")
    assert "b" in hub.files("ada/m", "refs/pr/1")
    assert hub.files("ada/m").keys() == {".gitattributes"}
    assert [row.name for row in api.list_repo_refs("ada/m").branches] == ["main", "edits/one"]
    with pytest.raises(HfHubHTTPError, match="412"):
        commit(api, {"c": b"3"}, parent_commit="0" * 40)


def test_a_large_file_of_another_repository_is_duplicated_without_traffic(api, hub):
    hub.add_repo("org/base", NAMES)
    api.create_repo("ada/m")
    hub.reset()
    copy = CommitOperationCopy("model.safetensors", "model.safetensors", "main", "org/base", "model")
    api.create_commit("ada/m", [copy], commit_message="copy")
    assert hub.files("ada/m")["model.safetensors"] == WEIGHTS
    assert hub.up + hub.down < 5000


def test_ranges_are_served_from_the_storage_without_the_token(api, hub):
    hub.add_repo("org/base", NAMES)
    url = hf_hub_url("org/base", "model.safetensors")
    metadata = api.get_hf_file_metadata(url=url)
    assert (metadata.size, metadata.etag) == (len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest())
    assert metadata.location.startswith(hub.storage_url)
    headers = {"Range": "bytes=5-9", "Authorization": f"Bearer {hub.add_user('bob')}"}
    answer = get_session().get(url, headers=headers)
    assert (answer.status_code, answer.content) == (206, WEIGHTS[5:10])
    assert answer.headers["Content-Range"] == f"bytes 5-9/{len(WEIGHTS)}"
    assert get_session().get(url, headers={"Range": "bytes=999999-"}).status_code == 416
    hub.fail("GET /org/base/*", whole_file=True, times=9)
    assert get_session().get(url, headers=headers).content == WEIGHTS


def test_who_may_see_what(api, hub):
    hub.add_repo("ada/secret", NAMES, private=True)
    hub.add_repo("org/gated", NAMES, gated=True)
    stranger = HfApi(token=hub.add_user("bob"))
    nobody = HfApi(token=False)
    assert api.model_info("ada/secret").private
    for client in (stranger, nobody):
        with pytest.raises(RepositoryNotFoundError):
            client.model_info("ada/secret")
        with pytest.raises(GatedRepoError):
            client.hf_hub_download("org/gated", "config.json")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("ada/secret", revision="v9")
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download("ada/secret", "missing.json")
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        HfApi(token="hf_wrong").model_info("ada/secret")
    reader = HfApi(token=hub.add_user("ada", can_write=False))
    with pytest.raises(HfHubHTTPError, match="403"):
        reader.create_repo("ada/n")


def test_the_card_is_checked(api):
    api.create_repo("ada/m")
    with pytest.raises(ValueError, match="base_model_relation"):
        commit(api, {"README.md": b"---\nbase_model_relation: cousin\n---\n"})
    with pytest.raises(ValueError, match='"base_model" must be a repository'):
        commit(api, {"README.md": b"---\nbase_model: /home/ada/model\n---\n"})
    commit(api, {"README.md": b"---\nlicense: mit\n---\nText.\n"})


@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        ("PUT /ada/m/*", {"status": 500}),
        ("PUT /ada/m/*", {"cut_after": 1000}),
        ("POST *.git/info/lfs/objects/batch", {"status": 429, "headers": {"Retry-After": "0"}}),
        ("POST */preupload/*", {"status": 503}),
    ],
)
def test_passing_faults_are_retried_by_the_client(api, hub, pattern, what):
    api.create_repo("ada/m")
    fault = hub.fail(pattern, **what)
    commit(api, NAMES)
    assert fault.hits == 2
    assert hub.files("ada/m")["model.safetensors"] == WEIGHTS


def test_an_interrupted_upload_keeps_what_arrived(api, hub):
    api.create_repo("ada/m")
    hub.fail("POST */commit/main", status=500)
    with pytest.raises(HfHubHTTPError, match="500"):
        commit(api, NAMES)
    assert hub.files("ada/m").keys() == {".gitattributes"}
    hub.reset()
    commit(api, NAMES)
    assert hub.lines("PUT *") == []
    assert hub.files("ada/m").items() >= NAMES.items()


def test_wrong_bytes_are_noticed_coming_in_and_sent_as_asked(api, hub):
    api.create_repo("ada/m")
    hub.fail("PUT /ada/m/*", corrupt=True, times=9)
    with pytest.raises(RuntimeError, match="model.safetensors") as caught:
        commit(api, NAMES)
    assert "does not have the announced sha256" in str(caught.value.__cause__)
    hub.faults.clear()
    commit(api, NAMES)
    hub.fail("GET /ada/m/resolve/*", corrupt=True)
    assert get_session().get(hf_hub_url("ada/m", "config.json")).content == b"{|"
    hub.fail("GET /ada/m/resolve/*", cut_after=1, times=99)
    with pytest.raises(HTTPError):
        get_session().get(hf_hub_url("ada/m", "config.json"))


def test_a_large_file_goes_in_parts_where_the_hub_says_so(api, hub):
    api.create_repo("ada/m")
    hub.part_size = 30_000
    passing = hub.fail("PUT /ada/m/*", status=500, skip=1)
    commit(api, NAMES)
    assert passing.hits == 5
    assert [request.up for request in hub.requests if request.line.startswith("PUT") and request.status == 200] == [
        30_000,
        30_000,
        30_000,
        len(WEIGHTS) - 90_000,
    ]
    assert len(hub.lines("POST /api/complete_multipart/*")) == 1
    assert hub.files("ada/m")["model.safetensors"] == WEIGHTS
    hub.fail("PUT /ada/m/*", corrupt=True, times=99)
    with pytest.raises(RuntimeError, match="other.safetensors"):
        commit(api, {"other.safetensors": WEIGHTS[1:]})
