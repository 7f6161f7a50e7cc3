"""The hub stand-in against the real client."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, HfFileSystem
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .hub_stand_in import HubStandIn

REPO = "org/model"


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    with HubStandIn() as hub:
        yield hub


@pytest.fixture
def api(hub: HubStandIn) -> HfApi:
    """A client with a token, and a repository to work on."""
    api = HfApi(endpoint=hub.url, token="x")
    api.create_repo(REPO)
    return api


def put(api: HfApi, path: str, content: bytes, **kwargs: str) -> str:
    """Upload one file; the hash of the commit."""
    return api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=REPO, **kwargs).oid


def paths(hub: HubStandIn, revision: str = "main") -> list[str]:
    return sorted(hub.files(REPO, revision))


def fetch(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One plain request, without the client's help."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def test_create_repo(hub: HubStandIn, api: HfApi) -> None:
    url = api.create_repo(REPO, exist_ok=True)
    assert (url, url.repo_id, url.repo_type) == (f"{hub.url}/{REPO}", REPO, "model")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(REPO)
    assert api.create_repo("mine").repo_id == "tester/mine"
    assert api.repo_exists(REPO)
    assert not api.repo_exists("org/none")
    with pytest.raises(HfHubHTTPError):
        HfApi(endpoint=hub.url, token=False).create_repo("org/anonymous")
    assert "models/org/anonymous" not in hub.repos


def test_whoami_needs_a_token(hub: HubStandIn, api: HfApi) -> None:
    assert api.whoami()["name"] == "tester"
    assert api.whoami()["auth"]["accessToken"]["role"] == "write"
    status, _, body = fetch(f"{hub.url}/api/whoami-v2")
    assert status == 401
    assert "error" in json.loads(body)


def test_private_repo_is_hidden_from_anonymous_calls(hub: HubStandIn, api: HfApi) -> None:
    api.create_repo("org/secret", private=True)
    assert api.model_info("org/secret").private is True
    assert api.model_info(REPO).private is False
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.url, token=False).model_info("org/secret")


def test_upload_file_and_listings(hub: HubStandIn, api: HfApi) -> None:
    put(api, "config.json", b"{}")
    put(api, "sub dir/deep/é.txt", b"abc")
    sha = put(api, "README.md", b"---\nlicense: mit\n---\n# Hi\n")
    assert ("POST", "/api/validate-yaml") in hub.requests
    assert sorted(api.list_repo_files(REPO)) == paths(hub) == ["README.md", "config.json", "sub dir/deep/é.txt"]
    info = api.model_info(REPO, files_metadata=True)
    assert (info.id, info.sha) == (REPO, sha)
    assert {file.rfilename: file.size for file in info.siblings} == {
        "README.md": 26,
        "config.json": 2,
        "sub dir/deep/é.txt": 3,
    }
    assert {item.path for item in api.list_repo_tree(REPO)} == {"README.md", "config.json", "sub dir"}
    assert [item.path for item in api.list_repo_tree(REPO, "sub dir")] == ["sub dir/deep"]
    assert len(list(api.list_repo_tree(REPO, recursive=True))) == 5
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "nothing"))
    assert [item.path for item in api.get_paths_info(REPO, ["config.json", "sub dir", "no"])] == [
        "config.json",
        "sub dir",
    ]
    assert api.file_exists(REPO, "sub dir/deep/é.txt")
    assert not api.file_exists(REPO, "no.txt")
    assert not api.file_exists("org/none", "config.json")


@pytest.mark.parametrize("metadata", ["license: CC BY 4.0", "- a list", "license: [unclosed"])
def test_metadata_that_cannot_be_is_refused(hub: HubStandIn, api: HfApi, metadata: str) -> None:
    with pytest.raises(ValueError, match=r"Invalid metadata in README.md"):
        put(api, "README.md", f"---\n{metadata}\n---\n# Hi\n".encode())
    assert paths(hub) == []


def test_unchanged_file_makes_no_commit(hub: HubStandIn, api: HfApi) -> None:
    first = put(api, "a.bin", b"same")
    assert put(api, "a.bin", b"same") == first
    assert put(api, "a.bin", b"other") != first
    assert len(hub.repos[f"models/{REPO}"].commits) == 3  # the empty first one included


def test_upload_folder_and_deletions(hub: HubStandIn, api: HfApi, tmp_path: Path) -> None:
    for name in ("keep.txt", "logs/1.txt", "logs/2.txt", "checkpoint/w.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    api.upload_folder(repo_id=REPO, folder_path=tmp_path)
    assert hub.files(REPO)["logs/1.txt"] == b"logs/1.txt"
    assert len(paths(hub)) == 4
    (tmp_path / "logs/1.txt").unlink()
    (tmp_path / "logs/3.txt").write_text("new")
    api.upload_folder(repo_id=REPO, folder_path=tmp_path, delete_patterns="logs/*")
    assert paths(hub) == ["checkpoint/w.bin", "keep.txt", "logs/2.txt", "logs/3.txt"]
    api.delete_folder("logs", repo_id=REPO)
    api.delete_file("keep.txt", repo_id=REPO)
    assert paths(hub) == ["checkpoint/w.bin"]
    operations = [
        CommitOperationCopy("checkpoint/w.bin", "copy.bin"),
        CommitOperationDelete("checkpoint/"),
        CommitOperationAdd("new.bin", b"new"),
    ]
    api.create_commit(REPO, operations, commit_message="All at once")
    assert paths(hub) == ["copy.bin", "new.bin"]


def test_commit_is_all_or_nothing(hub: HubStandIn, api: HfApi) -> None:
    first = put(api, "a.txt", b"1")
    operations = [CommitOperationAdd("b.txt", b"2"), CommitOperationDelete("missing.txt")]
    with pytest.raises(EntryNotFoundError):
        api.create_commit(REPO, operations, commit_message="Half")
    assert paths(hub) == ["a.txt"]
    put(api, "a.txt", b"2", parent_commit=first)
    with pytest.raises(HfHubHTTPError, match="412"):
        put(api, "a.txt", b"3", parent_commit=first)
    with pytest.raises(RevisionNotFoundError):
        put(api, "a.txt", b"3", revision=first)


def test_branches_and_commit_hashes(hub: HubStandIn, api: HfApi, tmp_path: Path) -> None:
    first = put(api, "a.txt", b"1")
    second = put(api, "a.txt", b"2")
    api.create_branch(REPO, branch="try/one", revision=first)
    api.create_branch(REPO, branch="try/one", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch(REPO, branch="try/one")
    put(api, "b.txt", b"3", revision="try/one")
    assert (paths(hub), paths(hub, "try/one")) == (["a.txt"], ["a.txt", "b.txt"])
    for revision, content in {"main": "2", first: "1", second: "2", "try/one": "1"}.items():
        file = Path(api.hf_hub_download(REPO, "a.txt", revision=revision, cache_dir=tmp_path))
        assert file.read_text() == content
        assert file.parent.name == api.model_info(REPO, revision=revision).sha


def test_not_found_errors(hub: HubStandIn, api: HfApi, tmp_path: Path) -> None:
    sha = put(api, "a.txt", b"1")
    with pytest.raises(RepositoryNotFoundError):
        api.hf_hub_download("org/none", "a.txt", cache_dir=tmp_path)
    with pytest.raises(RepositoryNotFoundError):
        api.hf_hub_download("unowned", "a.txt", cache_dir=tmp_path)
    with pytest.raises(RepositoryNotFoundError):
        put(HfApi(endpoint=hub.url, token="x"), "a.txt", b"1", repo_type="dataset")
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(REPO, "a.txt", revision="none", cache_dir=tmp_path)
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="none")
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(REPO, "none.txt", cache_dir=tmp_path)
    assert (tmp_path / "models--org--model/.no_exist" / sha / "none.txt").exists()
    assert fetch(f"{hub.url}/api/unheard-of")[0] == 501


def test_download_caches_and_refreshes(hub: HubStandIn, api: HfApi, tmp_path: Path) -> None:
    put(api, "a.bin", b"0123456789")
    for _ in range(2):
        file = Path(api.hf_hub_download(REPO, "a.bin", cache_dir=tmp_path))
    assert file.read_bytes() == b"0123456789"
    assert [call for call in hub.requests if call[0] == "GET" and "resolve" in call[1]] == [
        ("GET", f"/{REPO}/resolve/main/a.bin")
    ]
    put(api, "a.bin", b"changed")
    assert Path(api.hf_hub_download(REPO, "a.bin", cache_dir=tmp_path)).read_bytes() == b"changed"


def test_ranges(hub: HubStandIn, api: HfApi) -> None:
    put(api, "a.bin", b"0123456789")
    url = f"{hub.url}/{REPO}/resolve/main/a.bin"
    status, headers, body = fetch(url, Range="bytes=4-")
    assert (status, body, headers["Content-Range"]) == (206, b"456789", "bytes 4-9/10")
    assert fetch(url, Range="bytes=0-2")[2] == b"012"
    assert fetch(url, Range="bytes=8-99")[2] == b"89"
    assert fetch(url, Range="bytes=10-")[0] == 416
    with HfFileSystem(endpoint=hub.url, token="x").open(f"{REPO}/a.bin", block_size=4) as file:
        file.seek(6)
        assert file.read(2) == b"67"


def test_snapshot_download(hub: HubStandIn, api: HfApi, tmp_path: Path) -> None:
    files = {f"part {n % 3}/{n}.bin": b"%d" % n * 1000 for n in range(24)} | {"empty.txt": b""}
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    sha = api.create_commit(REPO, operations, commit_message="Many").oid
    folder = Path(api.snapshot_download(REPO, cache_dir=tmp_path))
    assert folder.name == sha
    assert {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()} == files
    local = Path(api.snapshot_download(REPO, revision=sha, local_dir=tmp_path / "local", allow_patterns="part 1/*"))
    assert len(list(local.glob("part 1/*"))) == 8
    assert not (local / "part 0").exists()
    with pytest.raises(RepositoryNotFoundError):
        api.snapshot_download("org/none", cache_dir=tmp_path)


def test_datasets_are_apart_from_models(hub: HubStandIn, api: HfApi, tmp_path: Path) -> None:
    assert api.create_repo(REPO, repo_type="dataset").repo_type == "dataset"
    put(api, "data.csv", b"a,b", repo_type="dataset")
    assert hub.files(REPO, kind="datasets") == {"data.csv": b"a,b"}
    assert hub.files(REPO) == {}
    assert api.dataset_info(REPO).siblings[0].rfilename == "data.csv"
    file = api.hf_hub_download(REPO, "data.csv", repo_type="dataset", cache_dir=tmp_path)
    assert Path(file).read_bytes() == b"a,b"


def test_failures_on_demand(hub: HubStandIn, api: HfApi, tmp_path: Path) -> None:
    hub.fail_next(2)
    for _ in range(2):
        with pytest.raises(HfHubHTTPError, match="500"):
            put(api, "a.txt", b"1")
    assert hub.files(REPO) == {}
    put(api, "a.txt", b"1")
    assert hub.files(REPO) == {"a.txt": b"1"}

    hub.fail_next(1, status=None, path_contains="repos/create")
    with pytest.raises(HTTPError, match="disconnected"):
        api.create_repo("org/other")
    assert not api.repo_exists("org/other")

    (tmp_path / "b.txt").write_text("2")
    hub.fail_next(1, status=403)
    with pytest.raises(HfHubHTTPError, match="403"):
        api.upload_folder(repo_id=REPO, folder_path=tmp_path)
    hub.fail_next(1, status=503, path_contains="preupload")  # the client tries again
    api.upload_folder(repo_id=REPO, folder_path=tmp_path)
    assert paths(hub) == ["a.txt", "b.txt"]

    hub.fail_next(1, status=502, method="GET", path_contains="resolve")
    with pytest.raises((HfHubHTTPError, LocalEntryNotFoundError)):
        api.hf_hub_download(REPO, "a.txt", cache_dir=tmp_path)
