//! Whom TLS trusts: the host's authorities, and those that Docker's and Podman's `certs.d` add.
//!
//! containers-certs.d(5): `*.crt` are authorities, `NAME.cert` and `NAME.key` show who we are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use super::credentials::home;
use super::{Options, WireError};

/// The TLS settings for `host` (with its port); `unchecked` takes any certificate.
pub(super) fn config(
    host: &str,
    options: &Options,
    unchecked: bool,
) -> Result<TlsConfig, WireError> {
    let mut roots: Vec<Certificate<'static>> = Vec::new();
    // What of the host's store cannot be read is left out: the handshake then says who is unknown.
    let native = rustls_native_certs::load_native_certs();
    roots.extend(native.certs.iter().map(|cert| Certificate::from_der(cert).to_owned()));
    let mut client = None;
    for folder in folders(host, options) {
        let found = in_folder(&folder)?;
        roots.extend(found.roots);
        client = client.or(found.client);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .client_cert(client)
        .disable_verification(unchecked)
        .unversioned_rustls_crypto_provider(provider)
        .build())
}

/// The TLS settings that Docker's client keeps in `folder`: `ca.pem`, `cert.pem`, `key.pem`.
pub(super) fn docker(folder: &Path) -> Result<TlsConfig, WireError> {
    let mut roots = Vec::new();
    let authority = folder.join("ca.pem");
    if authority.exists() {
        roots.extend(certificates(&authority)?);
    } else {
        let native = rustls_native_certs::load_native_certs();
        roots.extend(native.certs.iter().map(|cert| Certificate::from_der(cert).to_owned()));
    }
    let cert = folder.join("cert.pem");
    let client = if cert.exists() {
        let chain = certificates(&cert)?;
        let key = private_key(&folder.join("key.pem"), &chain)?;
        Some(ClientCert::new_with_certs(&chain, key))
    } else {
        None
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .client_cert(client)
        .unversioned_rustls_crypto_provider(provider)
        .build())
}

fn folders(host: &str, options: &Options) -> Vec<PathBuf> {
    let shared = ["/etc/containers/certs.d", "/etc/docker/certs.d"].map(PathBuf::from);
    let own = home().map(|home| home.join(".config/containers/certs.d"));
    let by_host = own.into_iter().chain(shared).map(|folder| folder.join(host));
    options.cert_dir.clone().into_iter().chain(by_host.filter(|folder| folder.is_dir())).collect()
}

#[derive(Default)]
struct Found {
    roots: Vec<Certificate<'static>>,
    client: Option<ClientCert>,
}

fn in_folder(folder: &Path) -> Result<Found, WireError> {
    let config = |path: &Path, why: String| WireError::Config { path: path.to_owned(), why };
    let entries = std::fs::read_dir(folder)
        .map_err(|error| config(folder, format!("cannot be read ({error})")))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let mut found = Found::default();
    for path in &paths {
        match path.extension().and_then(|e| e.to_str()) {
            Some("crt") => found.roots.extend(certificates(path)?),
            Some("cert") => {
                let chain = certificates(path)?;
                let key = private_key(&path.with_extension("key"), &chain)?;
                found.client = Some(ClientCert::new_with_certs(&chain, key));
            }
            _ => {}
        }
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<u8>, WireError> {
    std::fs::read(path).map_err(|error| WireError::Config {
        path: path.to_owned(),
        why: format!("cannot be read ({error})"),
    })
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, WireError> {
    let bytes = read(path)?;
    let certs: Vec<_> = parse_pem(&bytes)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(cert)) => Some(cert),
            _ => None,
        })
        .collect();
    if certs.is_empty() {
        let why = "holds no certificate in PEM form".to_owned();
        return Err(WireError::Config { path: path.to_owned(), why });
    }
    Ok(certs)
}

/// The key, which must be that of the first certificate: the HTTP crate would panic later.
fn private_key(
    path: &Path,
    chain: &[Certificate<'static>],
) -> Result<PrivateKey<'static>, WireError> {
    let bytes = read(path)?;
    let config = |why: &str| WireError::Config { path: path.to_owned(), why: why.to_owned() };
    let key =
        PrivateKey::from_pem(&bytes).map_err(|_| config("holds no private key in PEM form"))?;
    let der = PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|_| config("holds no private key in PEM form"))?;
    let chain = chain.iter().map(|cert| CertificateDer::from(cert.der().to_vec())).collect();
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain, der, &provider)
        .map_err(|_| config("holds no key that fits the certificate beside it"))?;
    Ok(key)
}
