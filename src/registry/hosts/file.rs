//! `hosts.toml`: which hosts stand in for a registry, in which order, and how each is spoken to.
//!
//! The format is containerd's (its `docs/hosts.md`): a `[host."URL"]` table for each mirror, asked in
//! the order of the file; the same keys at the top level are for `server`, which comes last and is
//! the registry itself if it is not named. Keys that crfs does not know are left alone, as containerd
//! does: the file is not ours. A known key with a value that cannot be right is an error.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use toml::{Table, Value};
use url::Url;

/// What a host may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::registry) enum Capability {
    /// Content by digest.
    Pull,
    /// What a tag stands for.
    Resolve,
    /// Writing.
    Push,
}

/// One host of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Where it is, with the path before the repository; `None` is the registry itself.
    pub(super) url: Option<Url>,
    pub(super) capabilities: Vec<Capability>,
    /// Files with CA certificates.
    pub(super) ca: Vec<PathBuf>,
    /// Certificate and key; one file may hold both.
    pub(super) client: Vec<(PathBuf, Option<PathBuf>)>,
    pub(super) skip_verify: bool,
    pub(super) headers: HeaderMap,
    pub(super) dial_timeout: Option<Duration>,
}

impl Default for Entry {
    /// The registry itself, for everything.
    fn default() -> Self {
        Self {
            url: None,
            capabilities: vec![Capability::Pull, Capability::Resolve, Capability::Push],
            ca: Vec::new(),
            client: Vec::new(),
            skip_verify: false,
            headers: HeaderMap::new(),
            dial_timeout: None,
        }
    }
}

/// The keys of a host, as written.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Keys {
    capabilities: Vec<String>,
    ca: OneOrMore,
    client: Option<Value>,
    skip_verify: bool,
    header: std::collections::BTreeMap<String, OneOrMore>,
    override_path: bool,
    dial_timeout: String,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl Default for OneOrMore {
    fn default() -> Self {
        Self::More(Vec::new())
    }
}

impl OneOrMore {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::More(all) => all,
        }
    }
}

/// Reads a file that lies in `folder`, to which its paths are relative. The server is the last entry.
pub(super) fn parse(text: &str, folder: &Path) -> Result<Vec<Entry>, String> {
    let mut top: Table = text.parse().map_err(|e: toml::de::Error| e.to_string())?;
    let hosts = match top.remove("host") {
        Some(Value::Table(hosts)) => hosts,
        Some(_) => return Err("host is not a table".to_owned()),
        None => Table::new(),
    };
    let server = match top.remove("server") {
        Some(Value::String(server)) => server,
        Some(_) => return Err("server is not a string".to_owned()),
        None => String::new(),
    };
    let mut entries = Vec::new();
    for (host, keys) in hosts {
        if host.is_empty() {
            return Err("a host has no name".to_owned());
        }
        entries.push(entry(&host, keys, folder).map_err(|why| format!("host {host:?}: {why}"))?);
    }
    let server = entry(&server, Value::Table(top), folder);
    entries.push(server.map_err(|why| format!("server: {why}"))?);
    Ok(entries)
}

fn entry(host: &str, keys: Value, folder: &Path) -> Result<Entry, String> {
    let keys: Keys = keys.try_into().map_err(|e| e.to_string())?;
    let capabilities = match keys.capabilities.is_empty() {
        true => vec![Capability::Pull, Capability::Resolve, Capability::Push],
        false => capabilities(&keys.capabilities)?,
    };
    let dial_timeout = match keys.dial_timeout.as_str() {
        "" => None,
        text => Some(duration(text)?),
    };
    Ok(Entry {
        url: match host {
            "" => None,
            host => Some(base(host, keys.override_path)?),
        },
        capabilities,
        ca: keys
            .ca
            .into_vec()
            .iter()
            .map(|ca| folder.join(ca))
            .collect(),
        client: pairs(keys.client, folder)?,
        skip_verify: keys.skip_verify,
        headers: headers(keys.header)?,
        dial_timeout,
    })
}

/// `https://` unless said otherwise, and `/v2` at the end of the path unless `override_path`.
fn base(host: &str, override_path: bool) -> Result<Url, String> {
    let text = match host.starts_with("http://") || host.starts_with("https://") {
        true => host.to_owned(),
        false => format!("https://{host}"),
    };
    let mut url = Url::parse(&text).map_err(|error| error.to_string())?;
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        return Err("credentials and queries do not belong in a host's url".to_owned());
    }
    let mut path = url.path().trim_end_matches('/').to_owned();
    if !override_path && !path.ends_with("/v2") {
        path.push_str("/v2");
    }
    url.set_path(&path);
    url.set_fragment(None);
    Ok(url)
}

fn capabilities(names: &[String]) -> Result<Vec<Capability>, String> {
    let mut all = Vec::new();
    for name in names {
        match name.to_ascii_lowercase().as_str() {
            "pull" => all.push(Capability::Pull),
            "resolve" => all.push(Capability::Resolve),
            "push" => all.push(Capability::Push),
            // Nothing that crfs does.
            "referrers" => {}
            _ => return Err(format!("unknown capability {name:?}")),
        }
    }
    Ok(all)
}

/// `client` is a file, a list of files, or a list of pairs.
fn pairs(client: Option<Value>, folder: &Path) -> Result<Vec<(PathBuf, Option<PathBuf>)>, String> {
    let wrong = || "client is not a file, a list of files, or a list of pairs".to_owned();
    let list = match client {
        None => Vec::new(),
        Some(Value::String(one)) => vec![Value::String(one)],
        Some(Value::Array(list)) => list,
        Some(_) => return Err(wrong()),
    };
    let pair = |value: Value| match value {
        Value::String(file) => Ok((folder.join(file), None)),
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(file)] => Ok((folder.join(file), None)),
            [Value::String(cert), Value::String(key)] => Ok((
                folder.join(cert),
                Some(folder.join(key)).filter(|_| !key.is_empty()),
            )),
            _ => Err(wrong()),
        },
        _ => Err(wrong()),
    };
    list.into_iter().map(pair).collect()
}

fn headers(all: impl IntoIterator<Item = (String, OneOrMore)>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, values) in all {
        let wrong = || format!("header {name:?} cannot be sent");
        let key: HeaderName = name.parse().map_err(|_| wrong())?;
        for value in values.into_vec() {
            let mut value = HeaderValue::from_str(&value).map_err(|_| wrong())?;
            value.set_sensitive(true);
            headers.append(key.clone(), value);
        }
    }
    Ok(headers)
}

/// A duration as Go writes it: `30s`, `1m30s`, `1.5s`, `300ms`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("dial_timeout {text:?} is not a duration such as \"10s\"");
    let (mut rest, mut total) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let number: f64 = rest
            .get(..digits)
            .and_then(|n| n.parse().ok())
            .ok_or_else(wrong)?;
        rest = rest.get(digits..).unwrap_or_default();
        let unit = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let (name, after) = rest.split_at(unit);
        total += number
            * match name {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return Err(wrong()),
            };
        rest = after;
    }
    Duration::try_from_secs_f64(total)
        .ok()
        .filter(|d| !d.is_zero())
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<Entry>, String> {
        parse(text, Path::new("/certs.d/r.io"))
    }

    #[test]
    fn hosts_come_in_the_order_of_the_file_and_the_server_last() {
        let all = parsed(
            r#"
            server = "https://up.io/prefix/"
            skip_verify = true
            [host."http://z.io:5000"]
              capabilities = ["pull", "Resolve"]
              ca = "ca.crt"
              dial_timeout = "1m1.5s"
            [host."a.io"]
              ca = ["one.crt", "/two.crt"]
              client = [["a.cert", "a.key"], ["b.pem", ""]]
              unheard_of = 1
            [host."https://m.io/v2/x".header]
              x-one = "1"
              x-two = ["2", "3"]
            [host."https://p.io/own/path"]
              override_path = true
              client = "both.pem"
            [host."https://q.io"]
              override_path = true
              client = ["q.pem"]
            "#,
        )
        .unwrap();
        let urls: Vec<_> = all
            .iter()
            .map(|e| e.url.clone().unwrap().to_string())
            .collect();
        assert_eq!(
            urls,
            [
                "http://z.io:5000/v2",
                "https://a.io/v2",
                "https://m.io/v2/x/v2",
                "https://p.io/own/path",
                "https://q.io/",
                "https://up.io/prefix/v2",
            ]
        );
        assert_eq!(all[0].capabilities, [Capability::Pull, Capability::Resolve]);
        assert_eq!(all[1].capabilities.len(), 3);
        assert_eq!(all[0].ca, [Path::new("/certs.d/r.io/ca.crt")]);
        assert_eq!(all[0].dial_timeout, Some(Duration::from_millis(61_500)));
        assert_eq!(
            all[1].ca,
            [Path::new("/certs.d/r.io/one.crt"), Path::new("/two.crt")]
        );
        let path = |name: &str| Path::new("/certs.d/r.io").join(name);
        let client = [(path("a.cert"), Some(path("a.key"))), (path("b.pem"), None)];
        assert_eq!(all[1].client, client);
        assert_eq!(all[2].headers.get_all("x-two").iter().count(), 2);
        assert_eq!(all[3].client, [(path("both.pem"), None)]);
        assert!(all[5].skip_verify && !all[0].skip_verify);
        let only = parsed("").unwrap();
        assert_eq!((only.len(), &only[0].url), (1, &None));
    }

    #[test]
    fn what_cannot_be_right_is_an_error_that_says_where() {
        for (text, why) in [
            ("server = 1", "server"),
            ("host = 1", "host"),
            ("[host.\"a.io\"]\ncapabilities = [\"fly\"]", "fly"),
            ("[host.\"a.io\"]\nca = 1", "a.io"),
            ("[host.\"a.io\"]\nclient = [[\"a\", \"b\", \"c\"]]", "pairs"),
            ("[host.\"a.io\"]\ndial_timeout = \"ten\"", "ten"),
            ("[host.\"a.io\"]\ndial_timeout = \"0s\"", "0s"),
            ("[host.\"a.io\".header]\n\"a b\" = \"x\"", "a b"),
            ("[host.\"https://u:p@a.io\"]", "credentials"),
            ("[host.\"https://\"]", "https://"),
            ("[host.\"\"]", "no name"),
            ("skip_verify = \"yes\"", "server"),
            ("= = =", "TOML"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
