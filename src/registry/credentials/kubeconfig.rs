//! A kubeconfig: which API server, and as whom.
//!
//! Source: Kubernetes, "kubeconfig (v1)". Read are the current context's cluster and user, with
//! certificates and tokens in the file or in files it names (relative to its own folder).

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Certificate, Client, ClientBuilder, Identity};
use serde::Deserialize;
use url::Url;

use crate::registry::credentials::Secret;
use crate::registry::host::is_loopback;

/// An API server that can be asked.
pub(super) struct Cluster {
    pub(super) server: Url,
    pub(super) client: Client,
    pub(super) login: Login,
}

/// What is shown to the API server beside a client certificate.
pub(super) enum Login {
    Nothing,
    Token(Secret),
    Password(String, Secret),
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Document {
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    users: Vec<NamedUser>,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(default)]
    current_context: String,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: ClusterEntry,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct ClusterEntry {
    server: String,
    certificate_authority: PathBuf,
    certificate_authority_data: String,
    insecure_skip_tls_verify: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct User {
    client_certificate: PathBuf,
    client_certificate_data: String,
    client_key: PathBuf,
    client_key_data: String,
    token: String,
    #[serde(rename = "tokenFile")]
    token_file: PathBuf,
    username: String,
    password: String,
    exec: Option<serde_json::Value>,
    auth_provider: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    #[serde(default)]
    user: String,
}

/// Reads the file and prepares a client of its current cluster. `build` has what all clients have
/// in common.
///
/// # Errors
/// What is missing or wrong.
pub(super) fn read(path: &Path, build: ClientBuilder) -> Result<Cluster, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    // The parser's own words could quote a secret.
    let document: Document =
        serde_saphyr::from_str(&text).map_err(|_| "it is not a kubeconfig".to_owned())?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let name = &document.current_context;
    let context = document
        .contexts
        .iter()
        .find(|context| context.name == *name);
    let Context { cluster, user } = &context.ok_or(format!("no context {name:?}"))?.context;
    let entry = document
        .clusters
        .iter()
        .find(|entry| entry.name == *cluster);
    let entry = &entry.ok_or(format!("no cluster {cluster:?}"))?.cluster;
    let nobody = User::default();
    let user = match document.users.iter().find(|entry| entry.name == *user) {
        Some(entry) => &entry.user,
        None if user.is_empty() => &nobody,
        None => return Err(format!("no user {user:?}")),
    };
    if user.exec.is_some() || user.auth_provider.is_some() {
        return Err(
            "a user by exec or auth-provider is not supported: use a service account's \
                    token or a client certificate"
                .to_owned(),
        );
    }
    let server: Url = entry
        .server
        .parse()
        .map_err(|error| format!("server: {error}"))?;
    let client = client(build, entry, user, folder)?;
    let login = login(user, folder)?;
    let is_private = server.scheme() == "https" || is_loopback(&server);
    if !is_private && !matches!(login, Login::Nothing) {
        return Err("its server is not https, and would see a secret in the clear".to_owned());
    }
    Ok(Cluster {
        server,
        client,
        login,
    })
}

fn client(
    build: ClientBuilder,
    entry: &ClusterEntry,
    user: &User,
    folder: &Path,
) -> Result<Client, String> {
    let mut build = build;
    // Fails if a provider is installed already: then that one is used.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (file, data) = (
        &entry.certificate_authority,
        &entry.certificate_authority_data,
    );
    if let Some(pem) = pem(file, data, folder).map_err(|e| format!("certificate-authority: {e}"))? {
        let all = Certificate::from_pem_bundle(&pem);
        build = build.tls_certs_only(all.map_err(|e| format!("certificate-authority: {e}"))?);
    }
    if entry.insecure_skip_tls_verify {
        build = build.tls_danger_accept_invalid_certs(true);
    }
    let (file, data) = (&user.client_certificate, &user.client_certificate_data);
    let certificate = pem(file, data, folder).map_err(|e| format!("client-certificate: {e}"))?;
    let (file, data) = (&user.client_key, &user.client_key_data);
    let key = pem(file, data, folder).map_err(|e| format!("client-key: {e}"))?;
    if let (Some(certificate), Some(key)) = (certificate, key) {
        let both = [certificate, b"\n".to_vec(), key].concat();
        let identity = Identity::from_pem(&both);
        build = build.identity(identity.map_err(|_| "the client certificate or key is no PEM")?);
    }
    build.build().map_err(|error| error.to_string())
}

fn login(user: &User, folder: &Path) -> Result<Login, String> {
    if !user.token_file.as_os_str().is_empty() {
        let token = std::fs::read_to_string(folder.join(&user.token_file));
        let token = token.map_err(|error| format!("tokenFile: {error}"))?;
        return Ok(Login::Token(Secret::new(token.trim().to_owned())));
    }
    if !user.token.is_empty() {
        return Ok(Login::Token(Secret::new(user.token.clone())));
    }
    if !user.username.is_empty() {
        let password = Secret::new(user.password.clone());
        return Ok(Login::Password(user.username.clone(), password));
    }
    Ok(Login::Nothing)
}

/// What stands in the file itself goes before the file it names.
fn pem(file: &Path, data: &str, folder: &Path) -> Result<Option<Vec<u8>>, String> {
    if !data.is_empty() {
        let data: String = data.split_whitespace().collect();
        let bytes = STANDARD.decode(data);
        return bytes.map(Some).map_err(|_| "it is not base64".to_owned());
    }
    if file.as_os_str().is_empty() {
        return Ok(None);
    }
    let bytes = std::fs::read(folder.join(file));
    bytes.map(Some).map_err(|error| error.to_string())
}
