//! What a node is made of: the daemon, containerd and its configuration, registries.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Finding, Subject};
use crate::daemon;
use crate::layer::NotLazy;
use crate::oci::Reference;
use crate::registry;
use crate::report::api;
use crate::service::control::{Client, Error};
use crate::setup::containerd::{Containerd, Flaw};

/// How long a registry may take to answer: enough for a few attempts.
const PATIENCE: Duration = Duration::from_secs(15);

pub(super) async fn examine(subject: &Subject) -> Vec<Finding> {
    let answer = match Client::connect(&subject.socket).await {
        Ok(mut client) => client.status().await,
        Err(error) => Err(error),
    };
    let mut findings = self::daemon(&subject.socket, answer);
    let containerd = &subject.config.containerd.address;
    findings.push(socket(
        containerd,
        UnixStream::connect(containerd).map(drop),
    ));
    match Containerd::read(&subject.containerd) {
        Ok(read) => findings.extend(configuration(
            &subject.containerd,
            &read.flaws(&subject.socket),
        )),
        Err(error) => findings.push(Finding::failure(
            "containerd's configuration",
            error.to_string(),
            "crfs setup writes it; --containerd-config names another file",
        )),
    }
    let client = daemon::client(&subject.config, None);
    for image in &subject.images {
        let began = Instant::now();
        let manifest = tokio::time::timeout(PATIENCE, client.manifest(image)).await;
        let manifest = manifest.unwrap_or_else(|_| {
            Err(registry::Error::Deadline {
                after: PATIENCE,
                last: registry::Error::Protocol("no answer".to_owned()).into(),
            })
        });
        findings.push(reachable(image, manifest.map(drop), began.elapsed()));
    }
    if subject.images.is_empty() {
        let remedy = "name an image, as in crfs doctor registry.example/app:1";
        findings.push(Finding {
            remedy: remedy.to_owned(),
            ..Finding::ok("registry", "none was asked")
        });
    }
    findings
}

fn daemon(socket: &Path, answer: Result<api::StatusReply, Error>) -> Vec<Finding> {
    const CHECK: &str = "daemon";
    let status = match answer {
        Ok(status) => status,
        Err(Error::Unreachable { why, .. }) => {
            let found = format!("nobody serves {}: {why}", socket.display());
            let remedy =
                "systemctl start crfs, or crfs serve; journalctl -u crfs says why it ended";
            return vec![Finding::failure(CHECK, found, remedy)];
        }
        Err(error) => {
            let remedy = "crfs upgrade replaces it by this program";
            return vec![Finding::warning(CHECK, error.to_string(), remedy)];
        }
    };
    let mut findings = Vec::new();
    let found = format!("crfs {} serves {}", status.version, socket.display());
    findings.push(match status.version == env!("CARGO_PKG_VERSION") {
        true => Finding::ok(CHECK, found),
        false => Finding::warning(CHECK, found, "crfs upgrade replaces it by this program"),
    });
    let mounts = status.mounts.unwrap_or_default();
    if mounts.lost > 0 {
        let found = format!("{} mounts were lost", mounts.lost);
        findings.push(Finding::failure(
            "mounts",
            found,
            "restart the containers that use them",
        ));
    }
    if let Some(degraded) = status.degraded.first() {
        let count = status.degraded.len();
        let found = format!(
            "{count} layers are not mounted, the first because: {}",
            degraded.why
        );
        let remedy = "they are tried again by themselves; crfs status lists them";
        findings.push(Finding::failure("mounts", found, remedy));
    }
    let cache = status.cache.unwrap_or_default();
    if cache.write_errors > 0 || cache.damaged > 0 {
        let found = format!(
            "{} writes failed, {} contents were damaged",
            cache.write_errors, cache.damaged
        );
        findings.push(Finding::warning(
            "cache",
            found,
            "look at its disk (dmesg, df)",
        ));
    }
    findings
}

fn socket(path: &Path, connected: io::Result<()>) -> Finding {
    const CHECK: &str = "containerd";
    match connected {
        Ok(()) => Finding::ok(CHECK, format!("answers at {}", path.display())),
        Err(error) => Finding::failure(
            CHECK,
            format!("{}: {error}", path.display()),
            "systemctl start containerd, or name its socket in [containerd] address",
        ),
    }
}

fn configuration(file: &Path, flaws: &[Flaw]) -> Vec<Finding> {
    const CHECK: &str = "containerd's configuration";
    if flaws.is_empty() {
        return vec![Finding::ok(CHECK, format!("{} is right", file.display()))];
    }
    let findings = flaws.iter().map(|flaw| {
        let found = format!("{}: {}", file.display(), flaw.what);
        match flaw.is_harmless {
            true => Finding::warning(CHECK, found, &flaw.remedy),
            false => Finding::failure(CHECK, found, &flaw.remedy),
        }
    });
    findings.collect()
}

fn reachable(image: &Reference, read: Result<(), registry::Error>, took: Duration) -> Finding {
    const CHECK: &str = "registry";
    match read {
        Ok(()) => Finding::ok(
            CHECK,
            format!("{image} can be read, in {} ms", took.as_millis()),
        ),
        Err(error) => {
            let why = NotLazy::from(error);
            Finding::failure(CHECK, format!("{image}: {why}"), remedy(&why))
        }
    }
}

fn remedy(why: &NotLazy) -> &'static str {
    use crate::layer::Reason;
    match why.reason() {
        Reason::Unauthorized => {
            "give the node credentials: docker's config.json, a credential provider or a kubeconfig (README, \
             \"On a Kubernetes node\"); what kubelet's pulls bring is not tried here"
        }
        Reason::NotFound => "look at the name and the tag",
        _ => {
            "look at name resolution, routes, proxies (HTTPS_PROXY) and certificates of this node; mirrors and CAs \
             go to /etc/containerd/certs.d"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Failure, Ok as Fine, Warning};
    use super::*;

    #[test]
    fn a_daemon_is_judged_by_what_it_says() {
        let socket = Path::new("/run/x.sock");
        let status = |change: &dyn Fn(&mut api::StatusReply)| {
            let mut status = api::StatusReply {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..api::StatusReply::default()
            };
            change(&mut status);
            let findings = daemon(socket, Ok(status));
            findings
                .iter()
                .map(|finding| finding.verdict)
                .collect::<Vec<_>>()
        };
        assert_eq!(status(&|_| {}), [Fine]);
        assert_eq!(
            status(&|status| status.version = "0.0.1".to_owned()),
            [Warning]
        );
        let lost = |status: &mut api::StatusReply| {
            status.mounts = Some(api::Mounts {
                lost: 1,
                ..api::Mounts::default()
            });
            status.degraded.push(api::Degraded::default());
            status.cache = Some(api::Cache {
                write_errors: 1,
                ..api::Cache::default()
            });
        };
        assert_eq!(status(&lost), [Fine, Failure, Failure, Warning]);
        let gone = Error::Unreachable {
            socket: socket.to_owned(),
            why: "refused".to_owned(),
        };
        let findings = daemon(socket, Err(gone));
        assert!(findings[0].verdict == Failure && findings[0].remedy.contains("crfs serve"));
        let older = daemon(socket, Err(Error::Older(socket.to_owned())));
        assert_eq!(older[0].verdict, Warning);
    }

    #[test]
    fn a_registry_that_refuses_has_another_remedy_than_one_that_is_away() {
        let image: Reference = "r.io/app:1".parse().unwrap();
        let unreachable = registry::Error::Unreachable {
            what: "manifest".into(),
            host: "r.io".to_owned(),
            why: "no route".to_owned(),
        };
        let away = reachable(&image, Err(unreachable), Duration::ZERO);
        assert!(
            away.verdict == Failure && away.remedy.contains("name resolution"),
            "{away:?}"
        );
        let refused = registry::Error::Unauthorized {
            what: "manifest".into(),
            host: "r.io".to_owned(),
            status: 401,
            hint: String::new(),
        };
        let refused = reachable(&image, Err(refused), Duration::ZERO);
        assert!(refused.remedy.contains("credentials"), "{refused:?}");
        let read = reachable(&image, Ok(()), Duration::from_millis(7));
        assert!(
            read.verdict == Fine && read.found.contains("in 7 ms"),
            "{read:?}"
        );
    }
}
