//! What kubelet's credential provider plugins are told, and say: the documents.
//!
//! Sources: Kubernetes, "Configure a kubelet image credential provider"; the API types
//! `kubelet.config.k8s.io/v1` (`CredentialProviderConfig`) and `credentialprovider.kubelet.k8s.io/v1`
//! (`CredentialProviderRequest`, `CredentialProviderResponse`).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::registry::credentials::pattern::Pattern;

/// The largest configuration file, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// The protocol's versions; they differ in nothing that matters here.
const API_VERSIONS: [&str; 3] = [
    "credentialprovider.kubelet.k8s.io/v1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
];

/// One plugin.
#[derive(Debug)]
pub(super) struct Plugin {
    /// Its file name in the folder of plugins.
    pub(super) name: String,
    /// Images that it knows credentials for.
    pub(super) images: Vec<Pattern>,
    /// How long its answer holds if it does not say.
    pub(super) usual_life: Duration,
    pub(super) api_version: String,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(String, String)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    kind: String,
    #[serde(default)]
    providers: Vec<Provider>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Provider {
    name: String,
    match_images: Vec<String>,
    default_cache_duration: String,
    api_version: String,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<Variable>>,
    #[serde(default)]
    token_attributes: Option<TokenAttributes>,
}

#[derive(Deserialize)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenAttributes {
    #[serde(default)]
    require_service_account: bool,
}

/// The question.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Request<'a> {
    pub(super) kind: &'a str,
    pub(super) api_version: &'a str,
    pub(super) image: &'a str,
}

/// The answer.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Response {
    pub(super) kind: String,
    pub(super) api_version: String,
    /// What else the answer holds for.
    pub(super) cache_key_type: CacheKey,
    #[serde(default)]
    pub(super) cache_duration: Option<String>,
    #[serde(default)]
    pub(super) auth: Option<HashMap<String, Login>>,
}

/// What a plugin's answer holds for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
pub(super) enum CacheKey {
    Image,
    Registry,
    Global,
}

#[derive(Deserialize)]
pub(super) struct Login {
    #[serde(default)]
    pub(super) username: String,
    #[serde(default)]
    pub(super) password: String,
}

/// The plugins of a file, or of all files of a folder in the order of their names.
///
/// # Errors
/// What is wrong, with the file.
pub(super) fn read(path: &Path) -> Result<Vec<Plugin>, String> {
    let mut plugins = Vec::new();
    for file in files(path).map_err(|error| format!("{}: {error}", path.display()))? {
        let failed = |why: String| format!("{}: {why}", file.display());
        let size = std::fs::metadata(&file)
            .map_err(|e| failed(e.to_string()))?
            .len();
        if size > MAX_FILE {
            return Err(failed(format!("larger than {MAX_FILE} bytes")));
        }
        let text = std::fs::read_to_string(&file).map_err(|e| failed(e.to_string()))?;
        plugins.extend(parse(&text).map_err(failed)?);
    }
    Ok(plugins)
}

fn files(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let file = entry?.path();
        let ending = file.extension().and_then(|ending| ending.to_str());
        if matches!(ending, Some("json" | "yaml" | "yml")) {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// JSON is read as the YAML that it is.
fn parse(text: &str) -> Result<Vec<Plugin>, String> {
    let document: Document = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
    if document.kind != "CredentialProviderConfig" {
        return Err(format!(
            "kind {:?} is not CredentialProviderConfig",
            document.kind
        ));
    }
    document.providers.into_iter().map(plugin).collect()
}

fn plugin(provider: Provider) -> Result<Plugin, String> {
    let refuse = |why: &str| format!("provider {:?}: {why}", provider.name);
    if provider.name.is_empty() || provider.name.contains('/') || provider.name.starts_with('.') {
        return Err(refuse("the name is not a file name"));
    }
    if !API_VERSIONS.contains(&provider.api_version.as_str()) {
        return Err(refuse(
            "apiVersion is not credentialprovider.kubelet.k8s.io/v1",
        ));
    }
    if provider
        .token_attributes
        .is_some_and(|token| token.require_service_account)
    {
        return Err(refuse(
            "it needs the service account token of a pod, which only kubelet has \
             (let crfs be kubelet's image service endpoint)",
        ));
    }
    let patterns = provider.match_images.iter();
    let patterns = patterns.map(|text| Pattern::parse(text).ok_or_else(|| refuse("matchImages")));
    let life = duration(&provider.default_cache_duration);
    let env = provider.env.unwrap_or_default().into_iter();
    Ok(Plugin {
        images: patterns.collect::<Result<_, _>>()?,
        usual_life: life.ok_or_else(|| refuse("defaultCacheDuration is not a duration"))?,
        api_version: provider.api_version,
        args: provider.args.unwrap_or_default(),
        env: env
            .map(|variable| (variable.name, variable.value))
            .collect(),
        name: provider.name,
    })
}

/// A duration as Go writes it: `12h0m0s`, `1.5s`, `300ms`, `0`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest.get(..digits)?.parse().ok()?;
        rest = rest.get(digits..)?;
        let end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let unit = match rest.get(..end)? {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * unit).ok()?)?;
        rest = rest.get(end..)?;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    const YAML: &str = "
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: ecr-credential-provider
    matchImages: ['*.dkr.ecr.*.amazonaws.com', \"r.io\"]
    defaultCacheDuration: 12h0m0s
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    args: [get-credentials]
    env:
      - {name: AWS_PROFILE, value: \"1\"}
";

    #[test]
    fn yaml_and_json_are_read() {
        let json = r#"{"kind":"CredentialProviderConfig","apiVersion":"kubelet.config.k8s.io/v1",
            "providers":[{"name":"p","matchImages":["*.io"],"defaultCacheDuration":"0s",
            "apiVersion":"credentialprovider.kubelet.k8s.io/v1beta1"}]}"#;
        let plugins = parse(YAML).unwrap();
        assert_eq!(plugins[0].name, "ecr-credential-provider");
        assert_eq!(plugins[0].usual_life, Duration::from_secs(12 * 3600));
        assert_eq!(plugins[0].env, [("AWS_PROFILE".to_owned(), "1".to_owned())]);
        assert_eq!(plugins[0].args, ["get-credentials"]);
        assert!(plugins[0].images[0].matches("1.dkr.ecr.eu.amazonaws.com", "a"));
        assert_eq!(parse(json).unwrap()[0].usual_life, Duration::ZERO);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("b.yaml"), YAML).unwrap();
        std::fs::write(folder.path().join("a.json"), json).unwrap();
        std::fs::write(folder.path().join("c.txt"), "not read").unwrap();
        let names: Vec<_> = read(folder.path())
            .unwrap()
            .into_iter()
            .map(|p| p.name)
            .collect();
        assert_eq!(names, ["p", "ecr-credential-provider"]);
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_reason() {
        for (from, to, why) in [
            ("ecr-credential-provider", "../x", "file name"),
            ("12h0m0s", "soon", "duration"),
            ("credentialprovider.kubelet.k8s.io/v1", "v9", "apiVersion"),
            ("CredentialProviderConfig", "Pod", "Pod"),
            ("'*.dkr", "'[.dkr", "matchImages"),
            (
                "args: [get-credentials]",
                "tokenAttributes: {requireServiceAccount: true}",
                "service account",
            ),
            ("providers:", "providers: 7 #", "providers"),
        ] {
            let text = YAML.replace(from, to);
            assert_ne!(text, YAML);
            let error = parse(&text).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn durations_are_gos() {
        for (text, millis) in [
            ("12h0m0s", Some(43_200_000)),
            ("1.5s", Some(1_500)),
            ("300ms", Some(300)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("", None),
            ("5", None),
            ("5 s", None),
            ("-5s", None),
            ("1d", None),
            ("99999999999999999999h", None),
        ] {
            assert_eq!(duration(text).map(|d| d.as_millis()), millis, "{text}");
        }
    }
}
