//! A registry for tests that does as it is told, and remembers every request.
//!
//! HTTP/1.1 over plain sockets or TLS, a thread per connection. It serves what was added under a path,
//! with ranges; asks for credentials if told to; and lets a test answer any request itself, wrongly
//! if need be. Integration tests include this file by its path.

#![allow(
    dead_code,
    reason = "each of the tests that include this file uses a part of it"
)]

use std::collections::{HashMap, HashSet};
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Barrier, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

/// A request as it arrived.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Without the query; of what a proxy is asked, also without scheme and host.
    pub fn path(&self) -> &str {
        let path = self.target.split('?').next().unwrap_or_default();
        let rest = path.strip_prefix("http://");
        rest.map_or(path, |rest| rest.find('/').map_or("/", |at| &rest[at..]))
    }

    /// The value of a parameter of the query.
    pub fn query(&self, name: &str) -> Option<&str> {
        let (_, query) = self.target.split_once('?')?;
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    /// The half-open range asked for.
    pub fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self
            .header("range")?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        Some((first.parse().ok()?, last.parse::<usize>().ok()? + 1))
    }
}

/// An answer, right or wrong.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// What `Content-Length` says instead of the truth.
    pub length: Option<usize>,
    /// Without `Content-Length`, in chunks.
    pub chunked: bool,
    /// Send only so many bytes of the body, then close the connection.
    pub cut: Option<usize>,
    /// Send only so many bytes of the body, then nothing for a minute.
    pub stall: Option<usize>,
    /// The rest comes instead of that once the test waits here too.
    pub until: Option<Arc<Barrier>>,
    /// One byte at a time, with this pause between them.
    pub drip: Option<Duration>,
    /// The same, from the head on.
    pub drip_head: Option<Duration>,
    /// Wait before the head.
    pub delay: Option<Duration>,
    /// Exactly these bytes, head and all, and the end of the connection.
    pub raw: Option<Vec<u8>>,
    /// The connection ends with a reset.
    pub reset: bool,
    /// The body goes on with zeros until the client hangs up.
    pub endless: bool,
}

impl Reply {
    pub fn new(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    pub fn redirect(location: impl Into<String>) -> Self {
        Self::new(307).with("location", location)
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// The right answer to a range request.
    pub fn part(content: &[u8], start: usize, end: usize) -> Self {
        let range = format!("bytes {start}-{}/{}", end - 1, content.len());
        Self::new(206)
            .with("content-range", range)
            .body(&content[start..end])
    }
}

/// Which tokens and passwords open the registry.
#[derive(Debug, Clone)]
pub enum Gatekeeper {
    /// `user:password` with every request.
    Basic(String),
    /// Tokens of this life, from `/token` of the server at the address (or of this one), for the
    /// holders of `user:password`, an identity token, or anyone.
    Bearer {
        realm: Option<String>,
        life: Duration,
        login: Option<String>,
    },
}

type Script = Arc<dyn Fn(&Seen, usize) -> Option<Reply> + Send + Sync>;

#[derive(Default)]
struct State {
    content: HashMap<String, (String, Vec<u8>)>,
    seen: Vec<Seen>,
    script: Option<Script>,
    gatekeeper: Option<Gatekeeper>,
    tokens: HashMap<String, Instant>,
    granted: HashSet<String>,
    uploads: usize,
    connections: usize,
}

/// A registry on a loopback address.
#[derive(Clone)]
pub struct FakeRegistry {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl FakeRegistry {
    /// Listens on 127.0.0.1.
    pub fn start() -> Self {
        Self::start_on("127.0.0.1:0")
    }

    /// Listens on another loopback address: another host.
    pub fn start_on(address: &str) -> Self {
        Self::listen(address, None)
    }

    /// Listens on a loopback address and speaks TLS.
    pub fn start_tls(address: &str, tls: Arc<rustls::ServerConfig>) -> Self {
        Self::listen(address, Some(tls))
    }

    fn listen(address: &str, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            state: Arc::default(),
        };
        let connections = server.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (server, tls) = (connections.clone(), tls.clone());
                // A client that went away is none of the server's business.
                thread::spawn(move || server.accept(stream, tls).unwrap_or_default());
            }
        });
        server
    }

    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub fn url(&self, target: &str) -> String {
        format!("http://{}{target}", self.address)
    }

    /// Serves `content` under `path`.
    pub fn add(&self, path: &str, kind: &str, content: &[u8]) {
        let entry = (kind.to_owned(), content.to_vec());
        self.state().content.insert(path.to_owned(), entry);
    }

    pub fn content(&self, path: &str) -> Option<Vec<u8>> {
        self.state()
            .content
            .get(path)
            .map(|(_, content)| content.clone())
    }

    /// Lets `script` answer first; it gets the request and how many came before it with the same
    /// path. It is asked before credentials are, and may take its time: nobody else waits for it.
    pub fn script(&self, script: impl Fn(&Seen, usize) -> Option<Reply> + Send + Sync + 'static) {
        self.state().script = Some(Arc::new(script));
    }

    pub fn guard(&self, gatekeeper: Gatekeeper) {
        self.state().gatekeeper = Some(gatekeeper);
    }

    /// Lets everyone in again.
    pub fn open(&self) {
        self.state().gatekeeper = None;
    }

    /// All tokens end now.
    pub fn revoke(&self) {
        self.state().tokens.clear();
    }

    /// Forgets all requests and what was scripted.
    pub fn reset(&self) {
        let mut state = self.state();
        state.seen.clear();
        state.script = None;
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.state().connections
    }

    /// Requests whose path starts with `prefix`.
    pub fn count(&self, prefix: &str) -> usize {
        let state = self.state();
        let paths = state.seen.iter().map(Seen::path);
        paths.filter(|path| path.starts_with(prefix)).count()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn accept(
        &self,
        stream: TcpStream,
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let socket = stream.try_clone()?;
        self.state().connections += 1;
        match tls {
            Some(tls) => {
                let connection = rustls::ServerConnection::new(tls).unwrap();
                self.converse(rustls::StreamOwned::new(connection, stream), &socket)
            }
            None => self.converse(stream, &socket),
        }
    }

    fn converse(&self, stream: impl Read + Write, socket: &TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        while let Some(seen) = read_request(&mut stream)? {
            let reply = self.answer(&seen);
            if !write_reply(stream.get_mut(), &seen.method, &reply)? {
                if reply.reset {
                    // What is closed with a linger of nothing is reset.
                    rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO))?;
                }
                break;
            }
        }
        Ok(())
    }

    fn answer(&self, seen: &Seen) -> Reply {
        let mut state = self.state();
        let before = state
            .seen
            .iter()
            .filter(|old| old.path() == seen.path())
            .count();
        state.seen.push(seen.clone());
        let script = state.script.clone();
        drop(state);
        if let Some(reply) = script.and_then(|script| script(seen, before)) {
            return reply;
        }
        let mut state = self.state();
        if seen.path() == "/token" {
            return state.token(seen);
        }
        if let Some(refusal) = state.refuse(seen, self.address) {
            return refusal;
        }
        state.serve(seen)
    }
}

impl State {
    fn token(&mut self, seen: &Seen) -> Reply {
        let Some(Gatekeeper::Bearer { life, login, .. }) = self.gatekeeper.clone() else {
            return Reply::new(404);
        };
        let form = String::from_utf8_lossy(&seen.body).into_owned();
        let shown = seen.header("authorization").map(str::to_owned);
        let fits = |login: String| {
            shown == Some(format!("Basic {login}"))
                || form.contains(&format!("refresh_token={login}"))
        };
        if !login.is_none_or(fits) {
            return Reply::new(401);
        }
        let token = format!("token{}", self.granted.len());
        self.granted.insert(token.clone());
        self.tokens.insert(token.clone(), Instant::now() + life);
        let seconds = life.as_secs().max(1);
        Reply::new(200).body(format!(r#"{{"token":"{token}","expires_in":{seconds}}}"#))
    }

    fn refuse(&self, seen: &Seen, address: SocketAddr) -> Option<Reply> {
        let shown = seen.header("authorization").unwrap_or_default();
        let challenge = match self.gatekeeper.as_ref()? {
            Gatekeeper::Basic(login) if shown == format!("Basic {login}") => return None,
            Gatekeeper::Basic(_) => "Basic realm=\"test\"".to_owned(),
            Gatekeeper::Bearer { realm, .. } => {
                let token = shown.strip_prefix("Bearer ").unwrap_or_default();
                let end = self.tokens.get(token);
                if end.is_some_and(|end| Instant::now() < *end) {
                    return None;
                }
                let own = format!("http://{address}/token");
                let realm = realm.as_ref().unwrap_or(&own);
                format!("Bearer realm=\"{realm}\",service=\"test\"")
            }
        };
        Some(Reply::new(401).with("www-authenticate", challenge))
    }

    fn serve(&mut self, seen: &Seen) -> Reply {
        match (seen.method.as_str(), self.content.get(seen.path())) {
            ("POST", _) if seen.path().ends_with("/blobs/uploads/") => {
                self.uploads += 1;
                let upload = format!("{}{}?state=a%2Fb", seen.path(), self.uploads);
                Reply::new(202).with("location", upload)
            }
            ("PUT", _) => {
                let kind = seen.header("content-type").unwrap_or_default().to_owned();
                let path = match seen.target.split_once("digest=") {
                    Some((_, digest)) => {
                        let repository = seen.path().split("/blobs/").next().unwrap_or_default();
                        format!("{repository}/blobs/{}", digest.replace("%3A", ":"))
                    }
                    None => seen.path().to_owned(),
                };
                self.content.insert(path, (kind, seen.body.clone()));
                Reply::new(201)
            }
            (_, Some((kind, content))) => {
                let reply = match seen.range() {
                    Some((start, end)) if end <= content.len() => Reply::part(content, start, end),
                    Some(_) => Reply::new(416),
                    None => Reply::new(200).body(content.clone()),
                };
                reply.with("content-type", kind)
            }
            _ => {
                Reply::new(404).body(r#"{"errors":[{"code":"UNKNOWN","message":"no such thing"}]}"#)
            }
        }
    }
}

fn read_request(reader: &mut BufReader<impl Read>) -> std::io::Result<Option<Seen>> {
    let start = reader.fill_buf()?;
    // A TLS handshake instead of a request: it is answered in plain HTTP all the same.
    if start.first() == Some(&0x16) {
        let size = start.len();
        reader.consume(size);
        return Ok(Some(Seen::default()));
    }
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.to_owned())),
            None => break,
        }
    }
    let mut seen = Seen {
        method,
        target,
        headers,
        body: Vec::new(),
    };
    let length = seen
        .header("content-length")
        .and_then(|length| length.parse().ok());
    reader
        .take(length.unwrap_or(0))
        .read_to_end(&mut seen.body)?;
    Ok(Some(seen))
}

fn drip(writer: &mut impl Write, bytes: &[u8], pause: Duration) -> std::io::Result<()> {
    for byte in bytes {
        writer.write_all(&[*byte])?;
        writer.flush()?;
        thread::sleep(pause);
    }
    Ok(())
}

/// Whether the connection goes on.
fn write_reply(writer: &mut impl Write, method: &str, reply: &Reply) -> std::io::Result<bool> {
    thread::sleep(reply.delay.unwrap_or_default());
    if let Some(raw) = &reply.raw {
        writer.write_all(raw)?;
        writer.flush()?;
        return Ok(false);
    }
    let mut head = format!("HTTP/1.1 {} Scripted\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    match reply.chunked {
        true => head += "transfer-encoding: chunked\r\n\r\n",
        false => {
            head += &format!(
                "content-length: {}\r\n\r\n",
                reply.length.unwrap_or(reply.body.len())
            )
        }
    }
    match reply.drip_head {
        Some(pause) => drip(writer, head.as_bytes(), pause)?,
        None => writer.write_all(head.as_bytes())?,
    }
    writer.flush()?;
    if method == "HEAD" {
        return Ok(true);
    }
    let shown = reply.cut.or(reply.stall).unwrap_or(reply.body.len());
    let body = &reply.body[..shown.min(reply.body.len())];
    if let Some(pause) = reply.drip.or(reply.drip_head) {
        drip(writer, body, pause)?;
    } else if reply.chunked {
        write!(writer, "{:x}\r\n", body.len())?;
        writer.write_all(body)?;
        writer.write_all(b"\r\n")?;
        if !reply.endless {
            writer.write_all(b"0\r\n\r\n")?;
        }
    } else {
        writer.write_all(body)?;
    }
    writer.flush()?;
    // Ends when the client does.
    for _ in reply.endless.then_some(()).iter().cycle() {
        match reply.chunked {
            true => writer.write_all(&[b"4000\r\n", &[0; 0x4000][..], b"\r\n"].concat())?,
            false => writer.write_all(&[0; 0x4000])?,
        }
    }
    match (reply.stall, &reply.until) {
        (Some(sent), Some(until)) => {
            until.wait();
            writer.write_all(&reply.body[sent..])?;
            writer.flush()?;
        }
        (Some(_), None) => thread::sleep(Duration::from_secs(60)),
        (None, _) => {}
    }
    Ok(reply.cut.is_none() && reply.stall.is_none() && !reply.reset)
}
