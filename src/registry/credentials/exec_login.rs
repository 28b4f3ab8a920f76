//! A kubeconfig's user by a program: the exec plugins of client-go, which clouds and single sign-on use.
//!
//! Source: Kubernetes, "client-go credential plugins" and the API type `client.authentication.k8s.io/v1`
//! (`ExecCredential`). The program is run without a terminal; what it says is kept until the time that it
//! names, or else until an API server refuses it.

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, SystemTime};

use humantime_serde::re::humantime;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::registry::credentials::{Secret, exec};

/// The protocol's versions that crfs speaks.
const V1: &str = "client.authentication.k8s.io/v1";
const V1BETA1: &str = "client.authentication.k8s.io/v1beta1";

/// `users[].user.exec` of a kubeconfig.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Plugin {
    api_version: String,
    command: String,
    args: Option<Vec<String>>,
    env: Option<Vec<Variable>>,
    install_hint: String,
    provide_cluster_info: bool,
    interactive_mode: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Variable {
    name: String,
    value: String,
}

/// What a plugin said, to be shown to the API server.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    pub(super) token: Option<Secret>,
    /// A client certificate and its key, PEM.
    pub(super) identity: Option<(String, Secret)>,
    until: Option<SystemTime>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    kind: String,
    api_version: String,
    #[serde(default)]
    status: Option<Status>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    token: String,
    client_certificate_data: String,
    client_key_data: String,
    expiration_timestamp: Option<String>,
}

impl Plugin {
    /// What a kubeconfig must not say.
    fn check(&self) -> Result<(), String> {
        if self.command.is_empty() {
            return Err("exec: it names no command".to_owned());
        }
        match (self.api_version.as_str(), self.interactive_mode.as_str()) {
            (V1, "") => Err("exec: interactiveMode is not said".to_owned()),
            (V1 | V1BETA1, "Always") => {
                Err("exec: its interactiveMode is Always, and crfs has no terminal".to_owned())
            }
            (V1, "Never" | "IfAvailable") | (V1BETA1, "" | "Never" | "IfAvailable") => Ok(()),
            (V1 | V1BETA1, _) => Err("exec: its interactiveMode is unknown".to_owned()),
            _ => Err(format!("exec: apiVersion is neither {V1} nor {V1BETA1}")),
        }
    }

    /// A name is looked for in `$PATH`, a path begins at the kubeconfig's folder.
    fn program(&self, folder: &Path) -> OsString {
        match self.command.contains('/') {
            true => folder.join(&self.command).into_os_string(),
            false => OsString::from(&self.command),
        }
    }

    /// What it is told of its task, in the environment.
    fn question(&self, cluster: &Value) -> String {
        let mut spec = json!({ "interactive": false });
        if self.provide_cluster_info {
            spec["cluster"] = cluster.clone();
        }
        let version = &self.api_version;
        json!({ "kind": "ExecCredential", "apiVersion": version, "spec": spec }).to_string()
    }

    async fn run(&self, folder: &Path, question: &str, timeout: Duration) -> Result<Shown, String> {
        let command = &self.command;
        let failed = |why: String| match self.install_hint.trim() {
            "" => format!("exec: {command}: {why}"),
            hint => format!("exec: {command}: {why} ({hint})"),
        };
        let args: Vec<_> = self.args.iter().flatten().map(String::as_str).collect();
        let own = self.env.iter().flatten();
        let mut env: Vec<_> = own.map(|v| (v.name.as_str(), v.value.as_str())).collect();
        env.push(("KUBERNETES_EXEC_INFO", question));
        let program = self.program(folder);
        let said = exec::run(&program, &args, &env, &[], timeout);
        let said = said.await.map_err(failed)?;
        if !said.ok {
            return Err(failed(format!("failed: {}", said.complaint)));
        }
        self.read(&said.output)
            .map_err(|what| failed(format!("its answer is not what the protocol says: {what}")))
    }

    /// The parser's own words could quote a secret: says what is wrong, not what it is.
    fn read(&self, output: &[u8]) -> Result<Shown, String> {
        let answer: Answer = serde_json::from_slice(output)
            .map_err(|error| format!("json, line {}", error.line()))?;
        if answer.kind != "ExecCredential" || answer.api_version != self.api_version {
            return Err("kind or apiVersion is another".to_owned());
        }
        let status = answer.status.ok_or("it has no status")?;
        let token = Some(status.token).filter(|token| !token.is_empty());
        let identity = match (status.client_certificate_data, status.client_key_data) {
            (cert, key) if cert.is_empty() && key.is_empty() => None,
            (cert, key) if cert.is_empty() || key.is_empty() => {
                return Err("a certificate without its key, or a key without one".to_owned());
            }
            (cert, key) => Some((cert, Secret::new(key))),
        };
        if token.is_none() && identity.is_none() {
            return Err("neither a token nor a certificate".to_owned());
        }
        let until = status.expiration_timestamp.as_deref().map(instant);
        Ok(Shown {
            token: token.map(Secret::new),
            identity,
            until: until.transpose()?,
        })
    }
}

/// What the plugin of a kubeconfig said last.
#[derive(Default)]
pub(super) struct Kept(Mutex<Option<(Plugin, String, Shown)>>);

impl Kept {
    /// What `plugin` says: what it said, as long as that holds, else anew. `folder` is the kubeconfig's,
    /// `cluster` what it may be told of the API server.
    ///
    /// # Errors
    /// It cannot be run, or does not say what it should; worded for a message.
    pub(super) async fn ask(
        &self,
        plugin: &Plugin,
        folder: &Path,
        cluster: &Value,
        timeout: Duration,
    ) -> Result<Shown, String> {
        plugin.check()?;
        let question = plugin.question(cluster);
        if let Some((known, asked, shown)) = &*self.0.lock()
            && known == plugin
            && *asked == question
            && shown.until.is_none_or(|until| SystemTime::now() < until)
        {
            return Ok(shown.clone());
        }
        let shown = plugin.run(folder, &question, timeout).await?;
        *self.0.lock() = Some((plugin.clone(), question, shown.clone()));
        Ok(shown)
    }

    /// An API server refused it.
    pub(super) fn forget(&self) {
        *self.0.lock() = None;
    }
}

/// A time by RFC 3339, with any offset.
fn instant(text: &str) -> Result<SystemTime, String> {
    let wrong = || "expirationTimestamp".to_owned();
    let parse = |text: &str| humantime::parse_rfc3339(text).map_err(|_| wrong());
    let offset = text.len().checked_sub("+00:00".len());
    let (time, offset) = match offset.and_then(|at| text.split_at_checked(at)) {
        Some((time, offset)) if offset.starts_with(['+', '-']) => (time, offset),
        _ => return parse(text),
    };
    let time = parse(&format!("{time}Z"))?;
    let (hours, minutes) = offset[1..].split_once(':').ok_or_else(wrong)?;
    let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
    let shift = Duration::from_secs(number(hours)? * 3600 + number(minutes)? * 60);
    let shifted = match offset.starts_with('+') {
        true => time.checked_sub(shift),
        false => time.checked_add(shift),
    };
    shifted.ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(mode: &str) -> Plugin {
        let text = format!(r#"{{"apiVersion":"{V1}","command":"x","interactiveMode":"{mode}"}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn times_are_read_with_their_offsets() {
        let noon = instant("2026-01-02T12:00:00Z").unwrap();
        for text in [
            "2026-01-02T14:00:00+02:00",
            "2026-01-02T06:30:00-05:30",
            "2026-01-02T12:00:00.000+00:00",
        ] {
            assert_eq!(instant(text).unwrap(), noon, "{text}");
        }
        for text in [
            "",
            "soon",
            "2026-01-02",
            "2026-01-02T12:00:00+0x:00",
            "+00:00",
        ] {
            assert!(instant(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_crfs_cannot_do_is_refused() {
        for (mode, ok) in [("Never", true), ("IfAvailable", true)] {
            assert_eq!(plugin(mode).check().is_ok(), ok, "{mode}");
        }
        for (mode, why) in [("", "not said"), ("Always", "terminal"), ("x", "unknown")] {
            let error = plugin(mode).check().unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let old = Plugin {
            api_version: V1BETA1.to_owned(),
            ..plugin("")
        };
        assert_eq!(old.check(), Ok(()));
        let older = Plugin {
            api_version: "client.authentication.k8s.io/v1alpha1".to_owned(),
            ..old
        };
        assert!(older.check().unwrap_err().contains("apiVersion"));
    }

    #[test]
    fn answers_are_read_strictly_and_never_quoted() {
        let answer = |status: &str| {
            format!(r#"{{"kind":"ExecCredential","apiVersion":"{V1}","status":{status}}}"#)
        };
        let read = |text: &str| plugin("Never").read(text.as_bytes());
        let both = r#"{"clientCertificateData":"c","clientKeyData":"hunter2"}"#;
        let shown = read(&answer(both)).unwrap();
        assert_eq!(shown.identity.unwrap().1.expose(), "hunter2");
        for (text, why) in [
            ("hunter2".to_owned(), "json"),
            (answer("null"), "no status"),
            (answer("{}"), "neither"),
            (answer(r#"{"clientKeyData":"hunter2"}"#), "without"),
            (
                answer(r#"{"token":"hunter2","expirationTimestamp":"hunter2"}"#),
                "expiration",
            ),
            (answer("{}").replace("/v1", "/v2"), "apiVersion"),
            (answer("{}").replace("ExecC", "C"), "kind"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(why) && !error.contains("hunter2"), "{error}");
        }
    }
}
