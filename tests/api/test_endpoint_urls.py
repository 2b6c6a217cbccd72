"""Where deliveries may go, judged when an endpoint is made or changed: https, and the public internet."""

from typing import Any

from tests.api import expect
from tests.conftest import Api

KEPT = {
    "https://hooks.example.com": "https://hooks.example.com/",
    "https://hooks.example.com/": "https://hooks.example.com/",
    "https://HOOKS.Example.COM/Path?q=A%20b&c": "https://hooks.example.com/Path?q=A%20b&c",
    "https://hooks.example.com:443/x": "https://hooks.example.com/x",
    "https://hooks.example.com:8443/x": "https://hooks.example.com:8443/x",
    "https://hooks.example.com?x=1": "https://hooks.example.com/?x=1",
    "https://xn--bcher-kva.example/": "https://xn--bcher-kva.example/",
    "https://8.8.8.8/": "https://8.8.8.8/",
    "https://[2606:4700:4700:0:0:0:0:1111]/": "https://[2606:4700:4700::1111]/",
    "https://127.0.0.1.example.com/": "https://127.0.0.1.example.com/",
    "https://localhost.example.com/": "https://localhost.example.com/",
}
NOT_HTTPS = [
    *("http://hooks.example.com/", "HTTP://hooks.example.com/", "http://8.8.8.8/", "http://localhost/"),
    *("//hooks.example.com/", "hooks.example.com", "/hook", "ftp://hooks.example.com/", "file:///etc/passwd"),
    *("javascript:alert(1)", "https:/hooks.example.com", "https:hooks.example.com", "data:text/plain,x", ""),
]
INTERNAL = [
    *(
        "https://localhost/",
        "https://LOCALHOST/",
        "https://localhost./",
        "https://a.localhost/",
        "https://intranet/",
    ),
    *(
        "https://db.internal/",
        "https://metadata.google.internal/",
        "https://printer.local/",
        "https://nas.lan/",
    ),
    *(
        "https://router.home.arpa/",
        "https://x.corp/",
        "https://x.home/",
        "https://x.private/",
        "https://x.invalid/",
    ),
    *("https://x.localdomain/", "https://x.onion/", "https://x.intranet/"),
    *(
        "https://127.0.0.1/",
        "https://127.1/",
        "https://0x7f.1/",
        "https://0x7f000001/",
        "https://2130706433/",
    ),
    *("https://0177.0.0.1/", "https://017700000001/", "https://127.0.0.01/", "https://127.0.0.1./"),
    *(
        "https://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460/",
        "https://127\u30020\u30020\u30021/",
        "https://127.0.0.1%2f/",
    ),
    *("https://\uff11\uff12\uff17.0.0.1/", "https://%31%32%37.0.0.1/", "https://\u217c\u2134calhost/"),
    *(
        "https://0.0.0.0/",
        "https://0/",
        "https://10.0.0.1/",
        "https://100.64.0.1/",
        "https://169.254.169.254/latest/",
    ),
    *("https://172.16.0.1/", "https://172.31.255.255/", "https://192.168.1.1/", "https://192.0.0.1/"),
    *("https://192.0.2.1/", "https://198.18.0.1/", "https://198.51.100.1/", "https://203.0.113.1/"),
    *("https://224.0.0.1/", "https://240.0.0.1/", "https://255.255.255.255/", "https://168.63.129.16/"),
    *("https://192.88.99.1/", "https://192.31.196.1/", "https://192.52.193.1/", "https://192.175.48.1/"),
    *("https://[::1]/", "https://[::]/", "https://[::ffff:127.0.0.1]/", "https://[::ffff:7f00:1]/"),
    *(
        "https://[::127.0.0.1]/",
        "https://[64:ff9b::7f00:1]/",
        "https://[2002:7f00:1::]/",
        "https://[2001::1]/",
    ),
    *("https://[fc00::1]/", "https://[fd00:ec2::254]/", "https://[fe80::1]/", "https://[fe80::1%25eth0]/"),
    *("https://[ff02::1]/", "https://[2001:db8::1]/", "https://[3fff::1]/", "https://[2620:4f:8000::1]/"),
]
MISLEADING = [
    *(
        "https://user@hooks.example.com/",
        "https://user:pass@hooks.example.com/",
        "https://8.8.8.8@127.0.0.1/",
    ),
    *(
        "https://hooks.example.com/#x",
        "https://hooks.example.com#@127.0.0.1/",
        "https://hooks.example.com\\@127.0.0.1/",
    ),
    *("https://hooks.example.com:80/", "https://hooks.example.com:22/", "https://hooks.example.com:0/"),
    *("https://hooks.example.com:6667/", "https://hooks.example.com:65536/", "https://hooks.example.com:/"),
    *("https://hooks.example.com:+443/", "https://hooks.example.com:\u0664\u0664\u0663/", "https://:443/"),
    *("https:///x", "https://.example.com/", "https://hooks..example.com/", "https://hooks.example.com./"),
    *(
        "https://-a.example.com/",
        "https://a_b.example.com/",
        "https://\u00fcber.example.com/",
        "https://ex ample.com/",
    ),
    *(
        " https://hooks.example.com/",
        "https://hooks.example.com/ ",
        "https://hooks.example.com/\n",
        "https://[8.8.8.8]/",
    ),
    *(
        "https://hooks.example.com/\r\nX: y",
        "https://hooks\t.example.com/",
        "https://hooks.example.com/\u00e9",
    ),
    *(
        "https://hooks.example.com/" + "x" * 2048,
        "https://" + "a." * 127 + "com/",
        "https://" + "a" * 64 + ".com/",
    ),
]


def create(api: Api, url: Any) -> Any:
    return api.post("/v1/endpoints", {"url": url, "events": ["*"]})


def test_a_url_is_kept_in_one_form(api):
    for url, kept in KEPT.items():
        made = expect.ok(create(api, url), 201)
        assert made["url"] == kept
        assert expect.ok(api.call("PATCH", f"/v1/endpoints/{made['id']}", {"url": kept}))["url"] == kept
    long = "https://hooks.example.com/" + "x" * (2048 - 26)
    assert expect.ok(create(api, long), 201)["url"] == long


def assert_all_refused(api: Api, urls: list[Any]) -> set[str]:
    """No endpoint gets any of these; gives the codes."""
    endpoint_id = expect.ok(create(api, "https://hooks.example.com/"), 201)["id"]
    codes = set()
    for url in urls:
        (error,) = expect.invalid(create(api, url), "/url")
        codes.add(error["code"])
        expect.invalid(api.call("PATCH", f"/v1/endpoints/{endpoint_id}", {"url": url}), "/url")
    endpoints = expect.ok(api.get("/v1/endpoints"))["data"]
    assert [endpoint["url"] for endpoint in endpoints] == ["https://hooks.example.com/"]
    return codes


def test_nothing_but_https(api):
    assert assert_all_refused(api, NOT_HTTPS) == {"https_required"}


def test_no_internal_address_in_any_spelling(api):
    codes = assert_all_refused(api, INTERNAL)
    assert codes == {"address_not_allowed", "host_not_allowed", "invalid_host", "invalid_url"}


def test_no_url_that_two_programs_could_read_differently(api):
    assert_all_refused(api, MISLEADING)


def test_no_url_that_is_no_text(api):
    assert_all_refused(api, [None, 5, True, [], {}, ["https://hooks.example.com/"]])


def test_an_international_name_comes_in_its_ascii_form(api):
    (error,) = expect.invalid(create(api, "https://b\u00fccher.example/"), "/url")
    assert "xn--" in error["detail"]
