//! A kubeconfig: which API server, and as whom.
//!
//! Source: Kubernetes, "kubeconfig (v1)". Read are the current context's cluster and user, with
//! certificates and tokens in the file, in files it names (relative to its own folder), or from a
//! program that it names ([`Plugin`]).

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Certificate, Client, ClientBuilder, Identity};
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use crate::registry::credentials::Secret;
use crate::registry::credentials::exec_login::{Plugin, Shown};
use crate::registry::host::is_loopback;

/// The extension of a cluster that is for its user's plugin.
const EXTENSION: &str = "client.authentication.k8s.io/exec";

/// The current context of a file: a cluster, and a user.
pub(super) struct Access {
    entry: ClusterEntry,
    user: User,
    folder: PathBuf,
}

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
    extensions: Vec<Extension>,
}

#[derive(Deserialize)]
struct Extension {
    name: String,
    #[serde(default)]
    extension: Value,
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
    exec: Option<Plugin>,
    auth_provider: Option<Value>,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    #[serde(default)]
    user: String,
}

/// Reads the file.
///
/// # Errors
/// What is missing or wrong.
pub(super) fn read(path: &Path) -> Result<Access, String> {
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
    let mut clusters = document.clusters.into_iter();
    let entry = clusters.find(|entry| entry.name == *cluster);
    let entry = entry.ok_or(format!("no cluster {cluster:?}"))?.cluster;
    let mut users = document.users.into_iter();
    let user = match users.find(|entry| entry.name == *user) {
        Some(entry) => entry.user,
        None if user.is_empty() => User::default(),
        None => return Err(format!("no user {user:?}")),
    };
    if user.auth_provider.is_some() {
        return Err(
            "a user by auth-provider is not supported: use exec, a service account's token or a \
             client certificate"
                .to_owned(),
        );
    }
    Ok(Access {
        entry,
        user,
        folder: folder.to_owned(),
    })
}

impl Access {
    /// The program that knows what the API server is to be shown, if the file does not.
    pub(super) const fn plugin(&self) -> Option<&Plugin> {
        self.user.exec.as_ref()
    }

    /// Where the file lies.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What a plugin may be told of the API server.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(super) fn described(&self) -> Result<Value, String> {
        let entry = &self.entry;
        let ca = entry.authority(&self.folder)?;
        let mut cluster = json!({ "server": entry.server });
        if let Some(pem) = ca {
            cluster["certificate-authority-data"] = json!(STANDARD.encode(pem));
        }
        if entry.insecure_skip_tls_verify {
            cluster["insecure-skip-tls-verify"] = json!(true);
        }
        let mut extensions = entry.extensions.iter();
        if let Some(own) = extensions.find(|extension| extension.name == EXTENSION) {
            cluster["config"] = own.extension.clone();
        }
        Ok(cluster)
    }

    /// Prepares a client of the API server. `build` has what all clients have in common, `shown` is what
    /// the plugin said, if there is one; what stands in the file goes before it.
    ///
    /// # Errors
    /// What is missing or wrong.
    pub(super) fn connect(
        &self,
        build: ClientBuilder,
        shown: Option<Shown>,
    ) -> Result<Cluster, String> {
        let Self {
            entry,
            user,
            folder,
        } = self;
        let server: Url = entry
            .server
            .parse()
            .map_err(|error| format!("server: {error}"))?;
        let (token, identity) = shown.map_or((None, None), |shown| (shown.token, shown.identity));
        let identity = identity.map(|(cert, key)| format!("{cert}\n{}", key.expose()).into_bytes());
        let client = client(build, entry, user.identity(folder)?.or(identity), folder)?;
        let login = match (login(user, folder)?, token) {
            (Login::Nothing, Some(token)) => Login::Token(token),
            (login, _) => login,
        };
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
}

impl ClusterEntry {
    fn authority(&self, folder: &Path) -> Result<Option<Vec<u8>>, String> {
        let (file, data) = (
            &self.certificate_authority,
            &self.certificate_authority_data,
        );
        pem(file, data, folder).map_err(|e| format!("certificate-authority: {e}"))
    }
}

impl User {
    /// The client certificate and its key.
    fn identity(&self, folder: &Path) -> Result<Option<Vec<u8>>, String> {
        let (file, data) = (&self.client_certificate, &self.client_certificate_data);
        let certificate =
            pem(file, data, folder).map_err(|e| format!("client-certificate: {e}"))?;
        let (file, data) = (&self.client_key, &self.client_key_data);
        let key = pem(file, data, folder).map_err(|e| format!("client-key: {e}"))?;
        let both = certificate.zip(key);
        Ok(both.map(|(certificate, key)| [certificate, b"\n".to_vec(), key].concat()))
    }
}

fn client(
    build: ClientBuilder,
    entry: &ClusterEntry,
    identity: Option<Vec<u8>>,
    folder: &Path,
) -> Result<Client, String> {
    let mut build = build;
    // Fails if a provider is installed already: then that one is used.
    let _ = rustls::crypto::ring::default_provider().install_default();
    if let Some(pem) = entry.authority(folder)? {
        let all = Certificate::from_pem_bundle(&pem);
        build = build.tls_certs_only(all.map_err(|e| format!("certificate-authority: {e}"))?);
    }
    if entry.insecure_skip_tls_verify {
        build = build.tls_danger_accept_invalid_certs(true);
    }
    if let Some(both) = identity {
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
