"""The page and the API's viewer in a real browser, and what their files may do."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmjax.data.decode import encode_png
from mmjax.serving.limits import new_key
from mmjax.serving.page import FILES, FOLDER, TYPES
from tests.chromium import Browser, chromium
from tests.live import Client, door
from tests.untrained import HOMES, KINDS, PRICE, SHADES, TAGS, add_model, picture

ANSWERED = "document.querySelector('#result .answer') !== null"
HOSTILE = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page") / "registry"
    schemas = {"kinds": KINDS, "price": PRICE, "shades": SHADES, "tags": TAGS, "homes": HOMES}
    for name, schema in schemas.items():
        add_model(root, name, schema)
    return root


@pytest.fixture(scope="module")
def keyed(registry: Path) -> Iterator[tuple[Client, str]]:
    """A server that wants a key, and the key."""
    key, line = new_key("page")
    (registry / "keys").write_text(line)
    models = [word for name in ("kinds", "price", "shades", "tags", "homes") for word in ("--model", name)]
    with door(registry, *models, "--max-batch", "64", "--api-keys", str(registry / "keys")) as server:
        yield server, key


@pytest.fixture(scope="module")
def running() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def browser(running: Browser) -> Browser:
    running.complaints.clear()
    running.look()
    return running


@pytest.fixture
def page(browser: Browser, keyed: tuple[Client, str]) -> Browser:
    """The page, opened with the key."""
    enter(browser, keyed, "/")
    browser.until("document.querySelectorAll('#form .field').length === 4")
    browser.complaints.clear()  # the first request was without a key, and refused
    return browser


def enter(browser: Browser, keyed: tuple[Client, str], path: str) -> None:
    """Open a page and type the key into the field that comes up and has the focus."""
    server, key = keyed
    browser.open(f"http://127.0.0.1:{server.port}{path}")
    browser.until("document.activeElement && document.activeElement.id === 'key'")
    browser.type(key)
    browser.press("Enter", 13, "\r")


def pick(page: Browser, name: str) -> None:
    script = "(name => { const all = document.querySelector('#model'); all.value = [...all.options].find("
    page.run(script + f"one => one.text.startsWith(name)).value; all.onchange() }})('{name}')")


def text(page: Browser, selector: str) -> str:
    return page.run(f"document.querySelector({json.dumps(selector)}).innerText")


def set_field(page: Browser, number: int, value: str) -> None:
    page.run(f"document.querySelector('#field-{number}').value = {json.dumps(value)}")


# ---- files


def test_every_file_is_ours_small_and_loads_nothing_from_elsewhere():
    assert {path.name for path in FOLDER.iterdir()} == set(FILES)
    for name, file in FILES.items():
        told = file.content.decode()
        addresses = [url for url in re.findall(r"https?://[^\s\"']+", told) if url != "http://www.w3.org/2000/svg"]
        assert addresses == [], name
        assert re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|\son\w+=\"", told) is None, (
            name
        )
    assert sum(len(file.content) for file in FILES.values()) < 60_000


def test_files_come_with_a_strict_policy_need_no_key_and_are_not_sent_twice(keyed: tuple[Client, str]):
    server = keyed[0]
    for path in ("/", "/docs", *(f"/pages/{name}" for name in FILES)):
        reply = server.ask("GET", path)
        assert reply.status == 200, path
        kind = TYPES[Path(path).suffix or ".html"]
        assert reply.headers["content-type"] == (f"{kind}; charset=utf-8" if kind.startswith("text/") else kind)
        policy = dict(part.split(" ", 1) for part in reply.headers["content-security-policy"].split("; "))
        assert (policy["default-src"], policy["script-src"], policy["style-src"]) == ("'none'", "'self'", "'self'")
        assert (policy["frame-ancestors"], policy["require-trusted-types-for"]) == ("'none'", "'script'")
        assert reply.headers["x-content-type-options"] == "nosniff"
        again = server.ask("GET", path, headers={"if-none-match": reply.headers["etag"]})
        assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize("path", ["/pages/none.js", "/pages/..%2fpage.py", "/pages/%2e%2e/page.py", "/pages/page.py"])
def test_no_other_file_is_sent(keyed: tuple[Client, str], path: str):
    server, key = keyed
    assert server.ask("GET", path, headers={"authorization": f"Bearer {key}"}).status == 404


# ---- the page in a browser


def test_a_key_is_asked_for_and_a_wrong_one_is_told(browser: Browser, keyed: tuple[Client, str]):
    enter(browser, (keyed[0], "wrong-key"), "/")
    browser.until("document.querySelector('#key-told').innerText.includes('expected Bearer and an API key')")
    assert browser.run("document.querySelector('#work').hidden") is True
    browser.run("document.querySelector('#key').value = ''")
    browser.type(keyed[1])
    browser.press("Enter", 13, "\r")
    browser.until("!document.querySelector('#work').hidden && document.querySelector('#key-form').hidden")
    assert browser.run("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]


def test_a_form_made_from_the_schema_is_answered(page: Browser, keyed: tuple[Client, str]):
    assert page.run("[document.title, document.querySelector('h1').innerText]") == ["mmjax: models"] * 2
    assert page.run("document.querySelector('#loading').hidden") is True
    names = page.run("[...document.querySelectorAll('#form label, #form legend')].map(one => one.innerText)")
    assert names == ["size", "colour", "flag", "when"]
    options = page.run("[...document.querySelectorAll('#field-1 option')].map(one => one.text)")
    assert options == ["(missing)", "red", "gr\u00fcn", "1"]
    for number, value in enumerate(("0.25", "1", "1", "2024-03-04")):
        set_field(page, number, value)
    page.run("document.querySelector('#form button').click()")
    page.until(ANSWERED)
    row = {"size": 0.25, "colour": "gr\u00fcn", "flag": "yes", "when": "2024-03-04"}
    body = json.dumps({"model": "kinds", "rows": [row]})
    headers = {"authorization": f"Bearer {keyed[1]}", "content-type": "application/json"}
    expected = keyed[0].ask("POST", "/predict/tabular", body, headers).json
    assert text(page, "#result .answer").split("\n") == ["kind", expected["labels"][0]]
    shares = page.run("[...document.querySelectorAll('.bars .share')].map(one => parseFloat(one.innerText))")
    assert shares == [pytest.approx(100 * share, abs=0.051) for share in sorted(expected["probabilities"][0])[::-1]]
    widths = page.run("[...document.querySelectorAll('.track > div')].map(one => parseFloat(one.style.width))")
    assert widths == [pytest.approx(100 * share) for share in sorted(expected["probabilities"][0])[::-1]]
    for term in ("Waiting", "Decoding", "Compiled call", "Encoding", "Seen from here"):
        assert re.search(rf"{term}\s+[\d.]+ ms", text(page, "#result")), term
    assert page.complaints == []


def test_a_row_of_gaps_is_answered_and_a_value_is_predicted(page: Browser):
    page.run("document.querySelector('#form button').click()")
    page.until(ANSWERED)
    assert "All fields were empty" in text(page, "#result #empty")
    pick(page, "price")
    page.until("document.querySelectorAll('#form .field').length === 2")
    set_field(page, 0, "1700000000.5")
    page.run("document.querySelector('#form button').click()")
    page.until(ANSWERED)
    assert page.run("document.querySelector('#empty')") is None
    assert re.fullmatch(r"price\n-?\d+(\.\d+)?", text(page, "#result .answer"))
    assert page.run("document.querySelector('.bars')") is None
    assert page.complaints == []


def test_labels_that_hold_are_named_and_marked(page: Browser, keyed: tuple[Client, str]):
    pick(page, "tags")
    page.until("document.querySelectorAll('#form .field').length === 2")
    assert "2 labels of which any number hold" in text(page, "#about")
    seen = set()
    for values in ((3.0, -3.0), (-3.0, 3.0), (3.0, 3.0), (-3.0, -3.0)):
        page.run("document.querySelector('#result').replaceChildren()")
        for number, value in enumerate(values):
            set_field(page, number, str(value))
        page.run("document.querySelector('#form button').click()")
        page.until(ANSWERED)
        body = json.dumps({"model": "tags", "features": [values]})
        headers = {"authorization": f"Bearer {keyed[1]}", "content-type": "application/json"}
        expected = keyed[0].ask("POST", "/predict/tabular", body, headers).json
        held = expected["labels"][0]
        assert text(page, "#result .answer").split("\n")[1] == (", ".join(held) or "none of the labels")
        names = page.run("[...document.querySelectorAll('.bars li > span:first-child')].map(one => one.innerText)")
        assert {name.removesuffix(" \u2713") for name in names if name.endswith("\u2713")} == set(held)
        seen.add(tuple(held))
    assert len(seen) > 1
    assert page.complaints == []


def test_what_the_server_refuses_stands_at_its_field(page: Browser):
    set_field(page, 0, HOSTILE)
    page.run("document.querySelector('#form button').click()")
    page.until("document.querySelector('#result [role=alert]') !== null")
    told = text(page, "#field-0-wrong")
    assert told.startswith("expected a number, got the text ")
    assert told.endswith("; leave it empty if it is not known")
    assert HOSTILE[:9] in told, "as text"
    assert page.run("document.activeElement.id") == "field-0"
    assert page.run("document.querySelector('#field-0').getAttribute('aria-invalid')") == "true"
    assert "field-0-wrong" in page.run("document.querySelector('#field-0').getAttribute('aria-describedby')")
    assert "400 bad-cell" in text(page, "#result")
    set_field(page, 0, "1")
    page.run("document.querySelector('#form button').click()")
    page.until(ANSWERED)
    assert page.run("document.querySelector('#field-0').getAttribute('aria-invalid')") == "false"
    assert page.run("window.pwned") is None


def test_fields_and_files_are_answered_together_and_what_is_wrong_stands_at_its_field(
    page: Browser, keyed: tuple[Client, str], tmp_path: Path
):
    pick(page, "homes")
    page.until("document.querySelectorAll('#form .field').length === 4")
    labels = page.run("[...document.querySelectorAll('#form label')].map(one => one.innerText)")
    assert labels == ["front", "back", "size", "colour"]
    front = encode_png(picture(60))
    (tmp_path / "front.png").write_bytes(front)
    page.choose("#image-0", tmp_path / "front.png")
    page.until("!document.querySelector('.preview').hidden")
    set_field(page, 0, "1.5")
    page.run("document.querySelector('#form button').click()")
    page.until(ANSWERED)
    row = {"size": 1.5, "colour": None, "front": base64.b64encode(front).decode()}
    headers = {"authorization": f"Bearer {keyed[1]}", "content-type": "application/json"}
    told = keyed[0].ask("POST", "/predict", json.dumps({"model": "homes", "rows": [row]}), headers).json
    shown = text(page, "#result .answer").split("\n")
    assert shown[0] == "price"
    assert float(shown[1].replace(",", "")) == pytest.approx(told["predictions"][0], rel=1e-4)
    (tmp_path / "no.png").write_text("no image")
    page.choose("#image-1", tmp_path / "no.png")
    page.run("document.querySelector('#form button').click()")
    page.until("document.querySelector('#result [role=alert]') !== null")
    assert text(page, "#image-1-wrong").startswith("expected JPEG, PNG, WebP, BMP or GIF")
    assert page.run("document.activeElement.id") == "image-1"
    page.run("document.querySelector('#form button[type=reset]').click()")
    assert page.run("document.querySelector('.preview').hidden")


def test_an_image_is_answered_and_what_is_none_is_refused(page: Browser, tmp_path: Path):
    pick(page, "shades")
    page.until("document.querySelector('#image') !== null")
    (tmp_path / "light.png").write_bytes(encode_png(picture(190)))
    page.choose("#image", tmp_path / "light.png")
    page.until(ANSWERED)
    assert text(page, "#result .answer").split("\n")[1] in ("dark", "light")
    page.until("!document.querySelector('.preview').hidden && document.querySelector('.preview').naturalWidth === 24")
    (tmp_path / "no.png").write_text("no image")
    page.choose("#image", tmp_path / "no.png")
    page.until("document.querySelector('#result [role=alert]') !== null")
    assert "image 1: " in text(page, "#result")


def test_the_card_is_elements_and_markup_in_it_stays_text(page: Browser):
    made = page.run(
        """(async () => {
          const { card } = await import('/pages/card.js');
          const lines = ['# Title', '## A <b>b</b>', 'one **two** `three <i>`', '', '- x', '- y', '',
            '| a | b |', '| :-- | --: |', '| 1 \\\\| 2 | <script>window.pwned=1</script> |', '',
            '```', '<img src=x>', '```', '[link](javascript:alert(1))'];
          const box = document.createElement('div');
          box.append(...card(lines.join('\\n')));
          return [box.innerText || box.textContent, [...box.querySelectorAll('*')].map(one => one.localName).join(' ')];
        })()"""
    )
    names = "h3 p strong code ul li li div table thead tr th th tbody tr td td pre code p"
    assert made[1] == names
    for kept in (
        "A <b>b</b>",
        "three <i>",
        "1 | 2",
        "<script>window.pwned=1</script>",
        "<img src=x>",
        "javascript:alert",
    ):
        assert kept in made[0]
    assert page.run("window.pwned") is None


def test_live_figures_follow_the_server(page: Browser):
    page.run("document.querySelector('#form button').click()")
    page.until("document.querySelectorAll('.chart').length === 4")
    page.until("parseFloat(document.querySelector('.chart .now').innerText) >= 0")
    counted = page.run(
        """(async () => {
          const { figures, between, quantile } = await import('/pages/live.js');
          const [name, route] = ['mmjax_request_seconds_bucket', '/predict/tabular'];
          const bucket = (le, value) => ({ name, labels: { route, le }, value });
          const requests = (value) => ({ name: 'mmjax_requests_total', labels: { route, status: '200' }, value });
          const look = (a, b, c) => figures({ m: { samples: [bucket('0.001', a), bucket('0.01', b),
            bucket('+Inf', c), requests(c)] } }, c * 10);
          const told = between(look(0, 0, 0), look(50, 100, 100));
          return [told.rate, told.median, told.slow, quantile([[Infinity, 0]], 0.5)];
        })()"""
    )
    assert counted == [pytest.approx(100), pytest.approx(1), pytest.approx(9.82), None]


def test_numbers_have_all_their_digits_left_of_the_point(page: Browser):
    values = [1463613.5, 123456789.25, -98765432.1, 146361.35, 541.237, 0.93333, 1.23e-5, 4e21, 0]
    shown = page.run(f"import('/pages/result.js').then(({{ number }}) => {json.dumps(values)}.map(number))")
    assert shown[:2] == ["1463613.5", "123456789.3"]
    assert shown[2:] == ["-98765432.1", "146361.4", "541.237", "0.93333", "0.0000123", "4" + 21 * "0", "0"]
    spread = page.run(
        """import('/pages/result.js').then(({ answer }) => answer(
          { classes: [], target: 'price', task: 'regression' },
          { document: { predictions: [1463613.5], intervals: [[1200000.25, 1700001]],
            quantiles: [{ "0.05": 1200000.25, "0.5": 1463613.5 }], uncertainty: [12345.6],
            model: { name: 'houses', version: 1 }, inference_time_ms: 123.4, request_id: 'r' },
            milliseconds: 5, timing: [] }).map((part) => part.textContent).join(' '))"""
    )
    for told in (
        "1463613.5",
        "1200000.3 to 1700001",
        "0.05: 1200000.3, 0.5: 1463613.5",
        "12346 (standard deviation",
        "123 ms",
    ):
        assert told in spread


def test_the_page_can_be_used_by_keyboard_and_by_ear(page: Browser):
    page.run("document.querySelector('#field-0').focus()")
    page.type("0.5")
    page.press("Enter", 13, "\r")
    page.until(ANSWERED)
    tree = page.tree()
    for role, name in (
        ("heading", "Ask a model"), ("heading", "Answer"), ("combobox", "Model"), ("textbox", "size"),
        ("combobox", "colour"), ("group", "when"), ("button", "Predict"), ("list", "Probabilities"), ("main", ""),
    ):  # fmt: skip
        assert (role, name) in tree, (role, name)
    unnamed = [role for role, name in tree if role in ("textbox", "combobox", "button", "link") and not name]
    assert unnamed == []
    page.run("document.activeElement.blur(); document.body.focus()")
    assert page.run("document.querySelector('.skip').getAttribute('href')") == "#main"


CONTRAST = """(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const shares = [0.2126, 0.7152, 0.0722];
  const light = (colour) => shares.reduce((sum, share, i) => sum + share * linear(colour[i] / 255), 0);
  const ground = (one) => {
    for (; one; one = one.parentElement) {
      const c = parse(getComputedStyle(one).backgroundColor);
      if (c.length === 3 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const wrong = [];
  for (const one of document.querySelectorAll('body *')) {
    const own = [...one.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || !one.checkVisibility()) continue;
    const [a, b] = [light(parse(getComputedStyle(one).color)), light(ground(one))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) wrong.push(`${one.localName}.${one.className}: ${one.textContent.slice(0, 30)}`);
  }
  return wrong;
})()"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [320, 1200])
def test_light_and_dark_wide_and_narrow_can_be_read(page: Browser, tmp_path: Path, dark: bool, width: int):
    page.look(width=width, dark=dark)
    set_field(page, 0, "much")
    page.run("document.querySelector('#form button').click()")
    page.until("document.querySelector('#result [role=alert]') !== null")
    assert page.run(CONTRAST) == []
    assert page.run("document.documentElement.scrollWidth") <= width, "nothing has to be scrolled sideways"
    set_field(page, 0, "1")
    page.run("document.querySelector('#form button').click()")
    page.until(ANSWERED)
    assert page.run(CONTRAST) == []
    page.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_the_viewer_shows_every_operation_and_can_try_one(browser: Browser, keyed: tuple[Client, str]):
    enter(browser, keyed, "/docs")
    browser.until("document.querySelectorAll('.operation').length > 0")
    browser.complaints.clear()
    headers = {"authorization": f"Bearer {keyed[1]}"}
    told = keyed[0].ask("GET", "/openapi.json", headers=headers).json
    operations = [operation["operationId"] for item in told["paths"].values() for operation in item.values()]
    assert sorted(browser.run("[...document.querySelectorAll('.operation')].map(one => one.id)")) == sorted(operations)
    browser.run("document.querySelectorAll('.operation').forEach(one => { one.open = true })")
    browser.until("document.querySelector('#predictTabular form') !== null")
    browser.run("document.querySelector('#predictTabular form button').click()")
    browser.until("/labels/.test(document.querySelector('#predictTabular form pre').innerText)")
    assert browser.run(CONTRAST) == []
    assert browser.complaints == []


def test_a_server_that_is_gone_is_told(page: Browser):
    page.run("fetch = () => Promise.reject(new TypeError('gone'))")
    page.run("document.querySelector('#form button').click()")
    page.until("document.querySelector('#result [role=alert]') !== null")
    assert "The server does not answer. Is it still running?" in text(page, "#result")
