"""What somebody gets who talks to the application without the page."""

import json
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen
from uuid import uuid4

import pytest

from promptcam_hf.app.guard import SessionFiles


def fetch(url: str, body: bytes | None = None, kind: str = "application/json") -> tuple[int, bytes, dict[str, str]]:
    """Status, content and headers of an answer."""
    try:
        with urlopen(Request(url, data=body, headers={"Content-Type": kind}), timeout=60) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def call(address: str, function: str, data: list) -> dict:
    """Call a function of the page as the page does, and wait for its result."""
    functions = json.loads(fetch(f"{address}/config")[1])["dependencies"]
    number = next(found["id"] for found in functions if found["api_name"] == function)
    session = f"../../../../{uuid4().hex}"  # whatever a browser says
    asked = {"data": data, "fn_index": number, "session_hash": session}
    status, content, _ = fetch(f"{address}/gradio_api/queue/join", json.dumps(asked).encode())
    assert status == 200, content
    _, events, _ = fetch(f"{address}/gradio_api/queue/data?session_hash={session}")
    messages = [json.loads(line[5:]) for line in events.decode().splitlines() if line.startswith("data:")]
    return next(message for message in messages if message["msg"] == "process_completed")


def as_file(path: str | Path) -> dict:
    return {"path": str(path), "orig_name": "bird.jpg", "meta": {"_type": "gradio.FileData"}}


def upload(address: str, file: Path) -> str:
    """Upload a file as the page does. Returns where the application keeps it."""
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{file.name}"\r\n\r\n'.encode()
    body = head + file.read_bytes() + b"\r\n--x--\r\n"
    return json.loads(fetch(f"{address}/gradio_api/upload", body, "multipart/form-data; boundary=x")[1])[0]


@pytest.fixture
def base(address) -> str:
    return address.rstrip("/")


def test_no_file_of_the_host_is_served(base, checkpoint, photograph):
    for path in ("/etc/passwd", checkpoint / "config.json", photograph, Path(__file__), "../../etc/passwd"):
        assert fetch(f"{base}/gradio_api/file={path}")[0] in (403, 404), path
    for path in ("guide/../guide/guide.json", "guide/%2e%2e/%2e%2e/etc/passwd", "guide//etc/passwd"):
        status, content, _ = fetch(f"{base}/{path}")
        assert status == 404 or json.loads(content) == {}, path
    assert fetch(f"{base}/guide/index.html")[:2] == (200, b"<title>All species</title>")


def test_a_path_is_no_upload(base, photograph):
    theirs = upload(base, photograph)
    assert call(base, "examine", [as_file(theirs)])["success"]
    refused = call(base, "examine", [as_file(photograph)])
    assert not refused["success"]
    assert call(base, "explain_many", [[as_file(theirs)]])["success"]
    assert not call(base, "explain_many", [[as_file(photograph)]])["success"]
    assert not call(base, "examine", [str(photograph)])["success"]
    # What a browser sends is no more than a dictionary, which need not say that it is a file
    for data in (
        {"path": str(photograph)},
        {"path": f"{theirs}/../../../..{photograph}"},
        {"path": str(Path(theirs).parents[1])},
    ):
        for found in (call(base, "examine", [data]), call(base, "explain_many", [[data]])):
            assert found["output"]["error"] == "Only files that were uploaded are opened.", data


def test_the_server_fetches_nothing_from_other_servers(base):
    found = call(base, "examine", [as_file("http://127.0.0.1:9/bird.jpg")])
    assert not found["success"]
    assert found["output"]["error"] == "Only files that were uploaded are opened."
    status, content, _ = fetch(f"{base}/gradio_api/file=http://127.0.0.1:9/bird.jpg")
    assert (status, content) == (403, b"Files of other servers are not fetched.")


def test_the_browser_is_told_to_ask_no_other_host(base):
    policy = fetch(base)[2]["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy


def test_files_go_with_their_visitor_and_equal_ones_stay_for_others(tmp_path):
    root = tmp_path / "application"
    root.mkdir()
    files, shared, own, hosts = SessionFiles(root), root / "shared.jpg", root / "own.jpg", tmp_path / "hosts.jpg"
    for path in (shared, own, hosts):
        path.write_text("x")
    files.uploaded("a", str(shared), str(own), str(hosts), f"{root}/../hosts.jpg")
    files.uploaded("../b", str(shared))
    folder = files.folder("../b")
    assert folder.parent == files.folder("a").parent == root / "sessions"
    files.forget("a")
    assert (shared.exists(), own.exists(), hosts.exists()) == (True, False, True)
    files.forget("../b")
    assert [shared.exists(), folder.exists()] == [False, False]
