//! The page in a real browser, against a real `phalanx serve`: does it show the formation, does it chat, are the experts
//! that light up those of the token, and does it leave everybody else alone.
#![allow(clippy::unwrap_used, reason = "a panic is a test's answer")]

mod browser;
#[path = "../program/mod.rs"]
mod program;

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use browser::{Browser, installed};
use program::{Scratch, command};
use serde_json::Value;

/// A cluster of its own, as long as the test.
struct Served {
    child: Child,
    url: String,
}

impl Served {
    fn start() -> Self {
        let mut child = command(&["serve", "--http", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let url = said.filter_map(|line| Some(line.split_once(" at http://")?.1.to_owned())).next();
        Self { child, url: format!("http://{}/", url.unwrap()) }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How many points of the formation have a colour of the page's, by the name of its variable.
fn points(browser: &mut Browser, variable: &str) -> u64 {
    let expression = format!(
        "(() => {{ const grid = document.getElementById('grid'); \
         const hex = getComputedStyle(document.documentElement).getPropertyValue('{variable}').trim(); \
         const rgb = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)); \
         const {{ data }} = grid.getContext('2d').getImageData(0, 0, grid.width, grid.height); let found = 0; \
         for (let i = 0; i < data.length; i += 4) if (rgb.every((part, at) => data[i + at] === part)) found += 1; \
         return found }})()"
    );
    browser.value(&expression).as_u64().unwrap()
}

fn text(browser: &mut Browser, id: &str) -> String {
    browser.value(&format!("document.getElementById('{id}').textContent")).as_str().unwrap().to_owned()
}

const LAST: &str = "[...document.querySelectorAll('#talk .model')].at(-1)";

#[test]
fn the_page_shows_the_formation_and_talks() {
    let Some(program) = installed() else {
        return println!("SKIPPED: no Chromium is installed");
    };
    let folder = Scratch::new("page");
    let served = Served::start();
    let mut browser = Browser::start(&program, folder.path());
    for scheme in ["dark", "light"] {
        browser.look(1280, 800, scheme);
        browser.open(&served.url);
        shows_the_formation(&mut browser, &served.url);
        chats(&mut browser, &served.url);
        browser.picture(scheme);
        // On a phone nothing sticks out.
        browser.look(390, 844, scheme);
        browser.wait("document.documentElement.scrollWidth <= 390");
        browser.picture(&format!("{scheme}-phone"));
    }
    goes_on_after_cuts(&mut browser);
    asks_for_a_key(&mut browser, &served.url);
    assert_eq!(browser.complaints, [] as [&str; 0]);
    let outside: Vec<_> = browser
        .requests
        .iter()
        .filter(|url| !url.starts_with(&served.url) && !url.starts_with("data:"))
        .collect();
    assert_eq!(outside, [] as [&str; 0]);
}

fn shows_the_formation(browser: &mut Browser, url: &str) {
    browser.wait("document.getElementById('state').textContent === 'serving'");
    browser.wait("/^(\\d+) of \\1 experts held/.test(document.getElementById('experts').textContent)");
    browser.wait("document.querySelectorAll('#nodes tr').length === 4");
    browser.wait("document.querySelectorAll('#events li').length > 4");
    let events = text(browser, "events");
    assert!(events.contains("joined with") && events.contains("have a holder"), "{events}");
    let filled = "(() => { const grid = document.getElementById('grid'); \
        const { data } = grid.getContext('2d').getImageData(0, 0, grid.width, grid.height); \
        return data.filter((value, at) => at % 4 === 3 && value === 255).length / (grid.width * grid.height) })()";
    let filled = browser.value(filled).as_f64().unwrap();
    assert!(filled > 0.5, "{filled} of the grid is filled");
    browser.value("document.getElementById('grid').focus()");
    for key in ["ArrowRight", "ArrowRight", "ArrowDown"] {
        browser.press(key);
    }
    let detail = text(browser, "detail");
    let layer =
        browser.value(&format!("fetch('{url}cluster').then((r) => r.json()).then((c) => c.layers[1].layer)"));
    assert!(
        detail.starts_with(&format!("Layer {layer}, expert 1: ")) && detail.contains("device"),
        "{detail}"
    );
    assert_eq!(points(browser, "--lit"), 0, "no token has gone through");
}

/// The page comes without a key, asks for one where it is refused, and keeps it for as long as the tab.
fn asks_for_a_key(browser: &mut Browser, url: &str) {
    browser.demand("sesame");
    browser.open(url);
    browser.wait("document.getElementById('state').textContent === 'key needed'");
    for key in ["wrong", "sesame"] {
        browser.wait("!document.getElementById('key').hidden");
        browser.click("document.getElementById('key-text')");
        browser.write(key);
        browser.press("Enter");
        if key == "wrong" {
            browser.wait("document.getElementById('key-said').textContent === 'give the right key'");
        }
    }
    for _ in 0..2 {
        browser.wait("document.getElementById('state').textContent === 'serving'");
        assert_eq!(browser.value("document.getElementById('key').hidden"), true);
        browser.open(url);
    }
    let kept = browser.value("[localStorage.length, sessionStorage.getItem('phalanx.key'), document.cookie]");
    assert_eq!(kept, serde_json::json!([0, "sesame", ""]));
    // Chromium itself writes down that it was refused.
    browser.complaints.retain(|complaint| !complaint.contains("status of 401"));
}

/// A stream that is cut twice, each time after two events: the page comes back with the last event's id, and shows what an unbroken
/// stream shows.
fn goes_on_after_cuts(browser: &mut Browser) {
    let shown = format!("[...{LAST}.querySelectorAll('span')].map((piece) => piece.textContent)");
    let whole = browser.value(&shown);
    assert!(whole.as_array().unwrap().len() > 4, "{whole}");
    browser.value(
        "(() => { const real = window.fetch; window.asked = []; window.fetch = async (url, how) => { \
         const response = await real(url, how); if (!String(url).includes('v1/chat')) return response; \
         window.asked.push(how.headers['Last-Event-ID'] ?? ''); if (window.asked.length > 2) return response; \
         const events = (await response.text()).split('\\n\\n').slice(0, 2); \
         return new Response(`${events.join('\\n\\n')}\\n\\n`, { headers: response.headers }) } })()",
    );
    browser.click("document.getElementById('question')");
    browser.write("sort 4921=");
    browser.press("Enter");
    browser.wait("window.asked.length === 3");
    browser.wait(&format!("{LAST}?.textContent === '1249;'"));
    browser.wait("document.getElementById('send').textContent === 'Send'");
    assert_eq!(browser.value(&shown), whole);
    let asked = browser.value("window.asked");
    assert!(asked[0] == "" && asked[1] != "" && asked[2] != "" && asked[1] != asked[2], "{asked}");
}

fn chats(browser: &mut Browser, url: &str) {
    browser.click("document.getElementById('question')");
    browser.write("sort 4921=");
    browser.press("Enter");
    browser.wait(&format!("{LAST}?.textContent === '1249;'"));
    browser.wait("document.getElementById('send').textContent === 'Send'");
    assert_eq!(points(browser, "--lit"), 0, "after an answer nothing is lit");

    // The same question as any client asks it says which experts they were.
    let asked = format!(
        "fetch('{url}v1/chat/completions', {{ method: 'POST', headers: {{ 'Content-Type': 'application/json' }}, \
         body: JSON.stringify({{ messages: [{{ role: 'user', content: 'sort 4921=' }}], temperature: 0, \
         phalanx: {{ return_experts: true }} }}) }}).then((response) => response.json())"
    );
    let answer = browser.value(&asked);
    assert_eq!(answer["choices"][0]["message"]["content"], "1249;");
    let layers = answer["phalanx"]["expert_layers"].as_array().unwrap();
    let experts = answer["phalanx"]["experts"][1].as_array().unwrap();
    let words = |(layer, experts): (&Value, &Value)| {
        let experts: Vec<_> = experts.as_array().unwrap().iter().map(Value::to_string).collect();
        format!("layer {layer}: {}", experts.join(", "))
    };
    let expected: Vec<_> = layers.iter().zip(experts).map(words).collect();
    let piece = format!("{LAST}.querySelectorAll('span')[1]");
    browser.point(&piece);
    let told = format!("“2” was computed by experts of {}.", expected.join("; "));
    assert_eq!(text(browser, "detail"), told);
    let lit = points(browser, "--lit");
    assert!(lit > 0, "its experts light up");
    browser.click(&piece);
    browser.point("document.querySelector('h1')");
    assert_eq!(points(browser, "--lit"), lit, "and stay");
    browser.press("Escape");
    assert_eq!(points(browser, "--lit"), 0, "until nobody wants to see them");
    // The same without a pointer.
    browser.value("document.getElementById('talk').focus()");
    for _ in 0..2 {
        browser.press("ArrowRight");
    }
    assert_eq!((points(browser, "--lit"), text(browser, "detail")), (lit, told));
}
