//! A kubeconfig's program, against an API server that knows some tokens.

use super::*;

/// A kubeconfig whose user is a program that says what stands in a file, and notes what it is asked.
struct Login {
    folder: tempfile::TempDir,
}

impl Login {
    fn new(server: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let script = "#!/bin/sh\ncd \"${0%/*}\"\necho \"$1 $TOLD $KUBERNETES_EXEC_INFO\" >> asked\n\
            [ -e answer ] || { echo no session >&2; exit 1; }\ncat answer\n";
        std::fs::write(at("login"), script).unwrap();
        std::fs::set_permissions(at("login"), PermissionsExt::from_mode(0o755)).unwrap();
        let text = std::fs::read_to_string(kubeconfig(folder.path(), server)).unwrap();
        let exec = "exec: {apiVersion: client.authentication.k8s.io/v1, command: ./login, args: [get], \
            interactiveMode: IfAvailable, provideClusterInfo: true, installHint: run sso first, \
            env: [{name: TOLD, value: told}]}";
        let text = text.replace("tokenFile: token", exec);
        let extension =
            "{extensions: [{name: client.authentication.k8s.io/exec, extension: {a: 7}}], server:";
        std::fs::write(at("kubeconfig"), text.replace("{server:", extension)).unwrap();
        Self { folder }
    }

    fn says(&self, status: &str) {
        let answer = format!(
            r#"{{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","status":{status}}}"#
        );
        std::fs::write(self.folder.path().join("answer"), answer).unwrap();
    }

    fn asked(&self) -> Vec<String> {
        let asked = std::fs::read_to_string(self.folder.path().join("asked"));
        asked
            .unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    fn secrets(&self) -> PullSecrets {
        pull_secrets(self.folder.path().join("kubeconfig"), &[])
    }
}

/// Only this token is let in from now on.
fn only(server: &FakeRegistry, token: &'static str) {
    server.script(move |seen, _| {
        let expected = format!("Bearer {token}");
        (seen.header("authorization") != Some(&expected)).then(|| Reply::new(401))
    });
}

#[tokio::test]
async fn a_program_says_what_the_api_server_is_shown() {
    let server = api_server("none");
    let page = format!(r#"{{"items":[{}]}}"#, secret("s", &login("r.io", "p")));
    server.add("/api/v1/secrets", "application/json", page.as_bytes());
    let program = Login::new(&server.url(""));
    let secrets = program.secrets();
    let again = || tokio::time::sleep(Duration::from_millis(350));

    let error = secrets.find("r.io", "x").await.unwrap_err().to_string();
    assert!(
        error.contains("no session") && error.contains("run sso first"),
        "{error}"
    );
    assert_eq!(server.seen().len(), 0);

    only(&server, "one");
    program.says(r#"{"token":"one"}"#);
    let secrets = program.secrets();
    assert_eq!(passwords(&secrets, "r.io/x").await, [password("p")]);
    let asked = program.asked();
    let (words, info) = asked[1].split_at("get told ".len());
    assert_eq!(words, "get told ");
    let info: serde_json::Value = serde_json::from_str(info).unwrap();
    assert_eq!(info["spec"]["interactive"], false);
    assert_eq!(info["spec"]["cluster"]["server"], server.url(""));
    assert_eq!(info["spec"]["cluster"]["config"]["a"], 7);
    again().await;
    passwords(&secrets, "r.io/x").await;
    assert_eq!(program.asked().len(), 2, "what does not end is kept");

    // The API server does not know it any more: once more, and not for ever.
    only(&server, "two");
    program.says(r#"{"token":"two","expirationTimestamp":"2001-01-01T00:00:00Z"}"#);
    server.add(
        "/api/v1/secrets",
        "x",
        page.replace("\"s\"", "\"t\"").as_bytes(),
    );
    again().await;
    assert_eq!(passwords(&secrets, "r.io/x").await, [password("p")]);
    assert_eq!(program.asked().len(), 3);
    again().await;
    passwords(&secrets, "r.io/x").await;
    assert_eq!(program.asked().len(), 4, "what has ended is asked for anew");
    only(&server, "three");
    let before = server.count("/api/v1/secrets");
    let fresh = program.secrets();
    let error = fresh.find("r.io", "x").await.unwrap_err().to_string();
    assert!(error.contains("401") && !error.contains("two"), "{error}");
    assert_eq!(server.count("/api/v1/secrets"), before + 2);
}
