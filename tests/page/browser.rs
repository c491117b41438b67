//! A real Chromium without a window, told what to do over its DevTools protocol.
//!
//! The protocol goes through two pipes, JSON by JSON with a zero byte between, so that neither a driver nor a socket is
//! needed. What the page asks the network for, and whatever it complains of, is kept for the test.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};

/// What has not come by then never does.
const PATIENCE: Duration = Duration::from_secs(60);
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/// A browser with one page.
pub(crate) struct Browser {
    child: Child,
    to: File,
    from: Receiver<Value>,
    number: u64,
    session: String,
    /// URLs that were asked for.
    pub(crate) requests: Vec<String>,
    /// Errors that the page wrote, threw, or caused.
    pub(crate) complaints: Vec<String>,
    /// The key without which the state of the cluster is refused.
    key: Option<String>,
}

/// The browser of this machine, if it has one.
pub(crate) fn installed() -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    let all = std::env::split_paths(&folders).flat_map(|folder| NAMES.map(|name| folder.join(name)));
    all.into_iter().find(|path| path.is_file())
}

impl Browser {
    /// Starts it; what it writes goes into `folder`.
    pub(crate) fn start(program: &Path, folder: &Path) -> Self {
        let pipes = ["in", "out"].map(|name| folder.join(name));
        let made = Command::new("mkfifo").args(&pipes).status().unwrap();
        assert!(made.success(), "no pipes in {}", folder.display());
        let mut child = Command::new("sh")
            .args(["-c", r#"exec "$0" "$@" 3<"$PIPE_IN" 4>"$PIPE_OUT""#])
            .arg(program)
            .args([
                "--headless",
                "--remote-debugging-pipe",
                "--no-first-run",
                "--disable-gpu",
                "--hide-scrollbars",
            ])
            .args([
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-dev-shm-usage",
            ])
            // Of a container's root nothing is kept apart, and the page is our own.
            .arg("--no-sandbox")
            .arg(format!("--user-data-dir={}", folder.join("profile").display()))
            .arg("about:blank")
            .env("PIPE_IN", &pipes[0])
            .env("PIPE_OUT", &pipes[1])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(folder.join("chromium.log")).unwrap())
            .spawn()
            .unwrap();
        // The shell opens them in this order too, and each side waits for the other.
        let to = File::options().write(true).open(&pipes[0]).unwrap();
        let out = BufReader::new(File::open(&pipes[1]).unwrap());
        let (tell, from) = channel();
        std::thread::spawn(move || {
            for message in out.split(0) {
                let Ok(message) = message else { return };
                if tell.send(serde_json::from_slice(&message).unwrap()).is_err() {
                    return;
                }
            }
        });
        assert!(child.try_wait().unwrap().is_none(), "the browser ended");
        let mut browser = Self {
            child,
            to,
            from,
            number: 0,
            session: String::new(),
            requests: Vec::new(),
            complaints: Vec::new(),
            key: None,
        };
        let target = browser.tell("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let attached = browser.tell("Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        browser.session = attached["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page", "Runtime", "Network", "Log"] {
            browser.tell(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// A command and its answer.
    pub(crate) fn tell(&mut self, method: &str, parameters: Value) -> Value {
        let number = self.send(method, &parameters);
        loop {
            let heard = self.from.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no answer to {method}"));
            if heard["id"] == number {
                assert!(heard["error"].is_null(), "{method}: {heard}");
                return heard["result"].clone();
            }
            self.keep(&heard);
        }
    }

    fn send(&mut self, method: &str, parameters: &Value) -> u64 {
        self.number += 1;
        let mut message = json!({"id": self.number, "method": method, "params": parameters});
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        self.to.write_all(format!("{message}\0").as_bytes()).unwrap();
        self.number
    }

    /// From now on the state of the cluster is refused without this key, as a server does that has keys.
    pub(crate) fn demand(&mut self, key: &str) {
        self.key = Some(key.to_owned());
        self.tell("Fetch.enable", json!({"patterns": [{"urlPattern": "*/cluster*"}]}));
    }

    fn let_through(&mut self, paused: &Value) {
        let (id, given) = (&paused["requestId"], &paused["request"]["headers"]["Authorization"]);
        let wanted = format!("Bearer {}", self.key.as_deref().unwrap());
        if *given == wanted {
            self.send("Fetch.continueRequest", &json!({ "requestId": id }));
        } else {
            // {"error":{"message":"give the right key"}}
            let body = "eyJlcnJvciI6eyJtZXNzYWdlIjoiZ2l2ZSB0aGUgcmlnaHQga2V5In19";
            self.send("Fetch.fulfillRequest", &json!({"requestId": id, "responseCode": 401, "body": body}));
        }
    }

    fn keep(&mut self, event: &Value) {
        let parameters = &event["params"];
        match event["method"].as_str() {
            Some("Network.requestWillBeSent") => {
                self.requests.push(parameters["request"]["url"].as_str().unwrap().to_owned());
            }
            Some("Fetch.requestPaused") => self.let_through(parameters),
            Some("Runtime.exceptionThrown") => {
                self.complaints.push(parameters["exceptionDetails"].to_string())
            }
            Some("Runtime.consoleAPICalled") if parameters["type"] == "error" => {
                self.complaints.push(parameters["args"].to_string());
            }
            Some("Log.entryAdded") if parameters["entry"]["level"] == "error" => {
                self.complaints.push(parameters["entry"].to_string());
            }
            _ => {}
        }
    }

    /// The window: its size, and whether the system is dark.
    pub(crate) fn look(&mut self, width: u32, height: u32, scheme: &str) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.tell("Emulation.setDeviceMetricsOverride", size);
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.tell("Emulation.setEmulatedMedia", media);
    }

    pub(crate) fn open(&mut self, url: &str) {
        self.tell("Page.navigate", json!({ "url": url }));
    }

    /// The value of an expression, or of what it promises.
    pub(crate) fn value(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let answer = self.tell("Runtime.evaluate", asked);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer:#}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    pub(crate) fn wait(&mut self, expression: &str) {
        let milliseconds = PATIENCE.as_millis() / 2;
        let watch = format!(
            "new Promise((done) => {{ const until = Date.now() + {milliseconds}; const look = () => {{ \
             let is; try {{ is = {expression} }} catch {{ is = false }} \
             is || Date.now() > until ? done(Boolean(is)) : setTimeout(look, 10) }}; look() }})"
        );
        if self.value(&watch) != true {
            let text = self.value("document.body.innerText");
            panic!("{expression} does not come; the page says:\n{}", text.as_str().unwrap_or(""));
        }
    }

    /// Points at the middle of an element.
    pub(crate) fn point(&mut self, element: &str) {
        let place = self.value(&format!(
            "(() => {{ const e = {element}; e.scrollIntoView({{ block: 'nearest' }}); \
             const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2] }})()"
        ));
        self.mouse("mouseMoved", &place);
    }

    pub(crate) fn click(&mut self, element: &str) {
        self.point(element);
        let place = self.value(&format!(
            "(() => {{ const b = {element}.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2] }})()"
        ));
        self.mouse("mousePressed", &place);
        self.mouse("mouseReleased", &place);
    }

    fn mouse(&mut self, kind: &str, place: &Value) {
        let button = if kind == "mouseMoved" { "none" } else { "left" };
        let event = json!({"type": kind, "x": place[0], "y": place[1], "button": button, "clickCount": 1});
        self.tell("Input.dispatchMouseEvent", event);
    }

    /// Writes where the cursor is.
    pub(crate) fn write(&mut self, text: &str) {
        self.tell("Input.insertText", json!({ "text": text }));
    }

    /// Presses a key by its name.
    pub(crate) fn press(&mut self, key: &str) {
        let code = match key {
            "Enter" => 13,
            "Escape" => 27,
            "ArrowRight" => 39,
            "ArrowDown" => 40,
            other => panic!("{other} has no number here"),
        };
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let text = if kind == "keyDown" { text } else { "" };
            let event =
                json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text});
            self.tell("Input.dispatchKeyEvent", event);
        }
    }

    /// Keeps a picture of the window where `PHALANX_PICTURES` names a folder.
    pub(crate) fn picture(&mut self, name: &str) {
        let Some(folder) = std::env::var_os("PHALANX_PICTURES") else { return };
        let picture = self.tell("Page.captureScreenshot", json!({"format": "png"}));
        let path = Path::new(&folder).join(format!("{name}.png"));
        std::fs::write(path, base64(picture["data"].as_str().unwrap())).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn base64(text: &str) -> Vec<u8> {
    let value = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'=').map(value).collect();
    let bytes = digits.chunks(4).flat_map(|four| {
        let bits =
            four.iter().fold(0u32, |bits, digit| bits << 6 | u32::from(*digit)) << (6 * (4 - four.len()));
        bits.to_be_bytes()[1..four.len()].to_vec()
    });
    bytes.collect()
}
