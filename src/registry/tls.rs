//! TLS to a host that is shown a client certificate: which of several, as containerd does it.
//!
//! containerd gives all pairs of a host to Go's TLS, which shows the first that the server says it
//! takes: one that was issued, it or its chain, by a CA that the server names, with a key of a kind
//! that it knows (RFC 8446, 4.2.4 and 4.3.2). If none fits, none is shown.

use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme,
};
use rustls_platform_verifier::Verifier;

use crate::registry::Error;
use crate::registry::hosts::Tls;

/// A client's side of TLS for a host that is spoken to as `tls` says.
pub(super) fn client(tls: &Tls) -> Result<ClientConfig, Error> {
    let setup = |error: rustls::Error| Error::Setup(format!("tls: {error}"));
    let provider = Arc::new(ring::default_provider());
    let identities = tls.identities.iter().map(|pem| Identity::read(pem));
    let identities = Identities(identities.collect::<Result<_, _>>().map_err(Error::Setup)?);
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(setup)?
        .dangerous()
        .with_custom_certificate_verifier(verifier(tls, provider)?);
    let mut config = builder.with_client_cert_resolver(Arc::new(identities));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Whether `pem` holds a certificate, the chain it may need, and its key.
pub(super) fn check(pem: &[u8]) -> Result<(), String> {
    Identity::read(pem).map(drop)
}

/// The system's CAs and those of the host; the latter alone on a node that has none of its own.
fn verifier(
    tls: &Tls,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, Error> {
    if tls.skip_verify {
        return Ok(Arc::new(Anything(provider)));
    }
    let mut extra = Vec::new();
    for pem in &tls.ca {
        for certificate in CertificateDer::pem_slice_iter(pem) {
            extra.push(certificate.map_err(|error| Error::Setup(format!("ca: {error}")))?);
        }
    }
    match Verifier::new_with_extra_roots(extra.clone(), Arc::clone(&provider)) {
        Ok(verifier) => Ok(Arc::new(verifier)),
        Err(error) => {
            tracing::warn!(%error, "no usable CA certificates (is the package ca-certificates installed?)");
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(extra);
            let verifier =
                rustls::client::WebPkiServerVerifier::builder_with_provider(roots.into(), provider);
            let verifier = verifier.build();
            Ok(verifier.map_err(|error| Error::Setup(format!("ca: {error}")))?)
        }
    }
}

/// A client certificate with its key, and who issued it.
#[derive(Debug)]
struct Identity {
    pair: Arc<CertifiedKey>,
    /// Of the certificate and of each one of its chain.
    issuers: Vec<DistinguishedName>,
}

impl Identity {
    fn read(pem: &[u8]) -> Result<Self, String> {
        let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| error.to_string())?;
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|_| "no key in it".to_owned())?;
        let mut issuers = Vec::new();
        for certificate in &chain {
            let parsed = webpki::EndEntityCert::try_from(certificate);
            let parsed = parsed.map_err(|error| error.to_string())?;
            issuers.push(DistinguishedName::in_sequence(parsed.issuer()));
        }
        if chain.is_empty() {
            return Err("no certificate in it".to_owned());
        }
        let pair = CertifiedKey::from_der(chain, key, &ring::default_provider());
        Ok(Self {
            pair: Arc::new(pair.map_err(|error| error.to_string())?),
            issuers,
        })
    }

    /// Whether a server that names these CAs (all, if it names none) takes it.
    fn fits(&self, authorities: &[&[u8]], schemes: &[SignatureScheme]) -> bool {
        let mut issuers = self.issuers.iter().map(AsRef::<[u8]>::as_ref);
        let known = issuers.any(|issuer| authorities.contains(&issuer));
        (authorities.is_empty() || known) && self.pair.key.choose_scheme(schemes).is_some()
    }
}

/// All that a host may be shown, in the order of its `hosts.toml`.
#[derive(Debug)]
struct Identities(Vec<Identity>);

impl ResolvesClientCert for Identities {
    fn resolve(
        &self,
        authorities: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let mut all = self.0.iter();
        let found = all.find(|identity| identity.fits(authorities, schemes))?;
        Some(Arc::clone(&found.pair))
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// `skip_verify`: whoever answers is believed, as long as the handshake is one.
#[derive(Debug)]
struct Anything(Arc<CryptoProvider>);

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let known = &self.0.signature_verification_algorithms;
        known.supported_schemes()
    }
}
