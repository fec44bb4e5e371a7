//! What a policy calls an image: transport, and scopes from the most specific to the widest.

use std::fmt;
use std::path::PathBuf;

use crate::wire::Reference;

/// Where an image comes from, in the words of containers-policy.json(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A registry.
    Docker(Reference),
    /// A folder or file: `oci`, `oci-archive`.
    Path { transport: &'static str, path: PathBuf, image: Option<String> },
    /// An engine that knows images by name: `docker-daemon`, `containerd`.
    Engine { transport: &'static str, reference: Reference },
    /// containers-storage, with its `[driver@root]`.
    Storage { store: String, reference: Reference },
    /// One that has no scopes: `docker-archive`, an image known by its id only.
    Unnamed { transport: &'static str, shown: String },
}

impl Origin {
    /// The key in `transports`.
    pub fn transport(&self) -> &str {
        match self {
            Self::Docker(_) => "docker",
            Self::Storage { .. } => "containers-storage",
            Self::Path { transport, .. }
            | Self::Engine { transport, .. }
            | Self::Unnamed { transport, .. } => transport,
        }
    }

    /// The name in a registry that signatures are compared with, where there is one.
    pub(super) fn reference(&self) -> Option<&Reference> {
        match self {
            Self::Docker(reference)
            | Self::Engine { reference, .. }
            | Self::Storage { reference, .. } => Some(reference),
            Self::Path { .. } | Self::Unnamed { .. } => None,
        }
    }

    /// Keys that match, the most specific first; the transport's own default is not among them.
    pub(super) fn scopes(&self) -> Vec<String> {
        match self {
            Self::Docker(reference) | Self::Engine { reference, .. } => named(reference),
            Self::Storage { store, reference } => {
                let mut scopes: Vec<String> =
                    named(reference).into_iter().map(|scope| format!("{store}{scope}")).collect();
                scopes.push(store.clone());
                let root = store.split_once('@').map(|(_, root)| format!("[{root}"));
                scopes.extend(root);
                scopes
            }
            Self::Path { path, image, .. } => paths(path, image.as_deref()),
            Self::Unnamed { .. } => Vec::new(),
        }
    }
}

/// The image, its repository, what that is in, its host, `*.` its domains.
fn named(reference: &Reference) -> Vec<String> {
    let mut name = reference.name();
    let mut scopes = Vec::new();
    if let Some(digest) = reference.digest {
        scopes.push(format!("{name}@{digest}"));
    } else if let Some(tag) = &reference.tag {
        scopes.push(format!("{name}:{tag}"));
    }
    loop {
        scopes.push(name.clone());
        let Some((shorter, _)) = name.rsplit_once('/') else { break };
        name = shorter.to_owned();
    }
    let mut domain = name.split(':').next().unwrap_or_default();
    while let Some((_, rest)) = domain.split_once('.') {
        scopes.push(format!("*.{rest}"));
        domain = rest;
    }
    scopes
}

/// `path:image`, the path, its parents but not `/`; symlinks resolved.
fn paths(path: &std::path::Path, image: Option<&str>) -> Vec<String> {
    let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let whole = format!("{}:{}", real.display(), image.unwrap_or_default());
    let above = real.ancestors().filter(|p| p.parent().is_some());
    [whole].into_iter().chain(above.map(|p| p.display().to_string())).collect()
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Docker(reference) => write!(f, "docker://{reference}"),
            Self::Path { transport, path, image } => {
                write!(f, "{transport}:{}", path.display())?;
                image.as_ref().map_or(Ok(()), |image| write!(f, ":{image}"))
            }
            Self::Engine { transport, reference } => write!(f, "{transport}:{reference}"),
            Self::Storage { store, reference } => {
                write!(f, "containers-storage:{store}{reference}")
            }
            Self::Unnamed { transport, shown } => write!(f, "{transport}:{shown}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_go_from_the_image_to_its_domain() {
        let docker = |name: &str| Origin::Docker(name.parse().unwrap()).scopes();
        assert_eq!(
            docker("a.b.example:5000/ns/repo:1"),
            [
                "a.b.example:5000/ns/repo:1",
                "a.b.example:5000/ns/repo",
                "a.b.example:5000/ns",
                "a.b.example:5000",
                "*.b.example",
                "*.example"
            ]
        );
        assert_eq!(
            docker("nginx:1")[..2],
            ["docker.io/library/nginx:1", "docker.io/library/nginx"]
        );
        let path =
            Origin::Path { transport: "oci", path: "/no/such".into(), image: Some("t".into()) };
        assert_eq!(path.scopes(), ["/no/such:t", "/no/such", "/no"]);
        let storage = Origin::Storage {
            store: "[overlay@/var/lib]".into(),
            reference: "localhost/a:1".parse().unwrap(),
        };
        assert_eq!(
            storage.scopes(),
            [
                "[overlay@/var/lib]localhost/a:1",
                "[overlay@/var/lib]localhost/a",
                "[overlay@/var/lib]localhost",
                "[overlay@/var/lib]",
                "[/var/lib]"
            ]
        );
    }
}
