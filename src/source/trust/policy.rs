//! The policy file. As the man page says it is read strictly: what slim does not know, or what is
//! there twice, makes the file no policy.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::Origin;
use super::identity::Identity;

/// A whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Policy {
    #[serde(deserialize_with = "requirements")]
    default: Vec<Requirement>,
    #[serde(default)]
    transports: Unique<Unique<Requirements>>,
}

#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct Requirements(#[serde(deserialize_with = "requirements")] Vec<Requirement>);

/// What is asked of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Requirement {
    Anything,
    Reject,
    /// Something that slim cannot check, and its name.
    Unsupported(String),
    Sigstore {
        keys: Vec<KeySource>,
        identity: Identity,
    },
}

/// Where a public key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KeySource {
    Path(PathBuf),
    Data(Vec<u8>),
}

impl Requirement {
    /// Whether there can be an image that meets it; if not, why.
    pub fn possible(&self) -> Result<(), String> {
        match self {
            Self::Anything | Self::Sigstore { .. } => Ok(()),
            Self::Reject => Err("it is not among the images that are allowed".to_owned()),
            Self::Unsupported(what) => Err(format!(
                "it asks for {what}, which slim cannot check: let skopeo or podman, which can, copy the image to a place that the policy trusts"
            )),
        }
    }
}

impl Policy {
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|error| error.to_string())
    }

    /// The most specific scope that matches, and what it asks.
    pub fn choose(&self, origin: &Origin) -> (String, Vec<Requirement>) {
        let transport = origin.transport();
        if let Some(scopes) = self.transports.0.get(transport) {
            let keys = origin.scopes().into_iter().chain([String::new()]);
            for key in keys {
                if let Some(found) = scopes.0.get(&key) {
                    return (format!("transports.{transport}.{key:?}"), found.0.clone());
                }
            }
        }
        ("default".to_owned(), self.default.clone())
    }
}

fn requirements<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Requirement>, D::Error> {
    use serde::de::Error;
    let list = Vec::<Value>::deserialize(from)?;
    if list.is_empty() {
        return Err(D::Error::custom("a list of requirements must not be empty"));
    }
    list.into_iter().map(|value| requirement(value).map_err(D::Error::custom)).collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Sigstore {
    #[serde(rename = "type")]
    _type: String,
    key_path: Option<PathBuf>,
    key_paths: Option<Vec<PathBuf>>,
    key_data: Option<String>,
    key_datas: Option<Vec<String>>,
    fulcio: Option<Value>,
    pki: Option<Value>,
    rekor_public_key_path: Option<Value>,
    rekor_public_key_paths: Option<Value>,
    rekor_public_key_data: Option<Value>,
    rekor_public_key_datas: Option<Value>,
    signed_identity: Option<Identity>,
}

fn requirement(value: Value) -> Result<Requirement, String> {
    let kind = value.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let alone = value.as_object().is_some_and(|object| object.len() == 1);
    match kind.as_str() {
        "insecureAcceptAnything" if alone => Ok(Requirement::Anything),
        "reject" if alone => Ok(Requirement::Reject),
        "signedBy" | "signedBaseLayer" => {
            Ok(Requirement::Unsupported(format!("a GPG signature ({kind})")))
        }
        "sigstoreSigned" => sigstore(serde_json::from_value(value).map_err(|e| e.to_string())?),
        _ => Err(format!("{value} is no requirement of containers-policy.json(5)")),
    }
}

fn sigstore(asked: Sigstore) -> Result<Requirement, String> {
    let rekor = [
        asked.rekor_public_key_path,
        asked.rekor_public_key_paths,
        asked.rekor_public_key_data,
        asked.rekor_public_key_datas,
    ];
    for (what, there) in [
        ("a certificate of Fulcio", asked.fulcio.is_some()),
        ("a certificate of a PKI", asked.pki.is_some()),
        ("an entry in Rekor's log", rekor.iter().any(Option::is_some)),
    ] {
        if there {
            return Ok(Requirement::Unsupported(format!("{what} (sigstoreSigned)")));
        }
    }
    let data = |text: &String| {
        let decoded = STANDARD.decode(text.trim());
        decoded.map(KeySource::Data).map_err(|_| "keyData is not base64".to_owned())
    };
    let ways = [
        asked.key_path.map(|path| Ok(vec![KeySource::Path(path)])),
        asked.key_paths.map(|paths| Ok(paths.into_iter().map(KeySource::Path).collect())),
        asked.key_data.map(|text| Ok(vec![data(&text)?])),
        asked.key_datas.map(|texts| texts.iter().map(data).collect()),
    ];
    let mut ways = ways.into_iter().flatten();
    let (Some(keys), None) = (ways.next(), ways.next()) else {
        return Err("sigstoreSigned needs one of keyPath, keyPaths, keyData, keyDatas".to_owned());
    };
    let keys: Vec<KeySource> = keys?;
    if keys.is_empty() {
        return Err("sigstoreSigned has an empty list of keys".to_owned());
    }
    Ok(Requirement::Sigstore { keys, identity: asked.signed_identity.unwrap_or_default() })
}

/// A map whose keys occur once.
#[derive(Debug)]
struct Unique<V>(BTreeMap<String, V>);

impl<V> Default for Unique<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Keys<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Keys<V> {
            type Value = Unique<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut found = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, V>()? {
                    if found.insert(key.clone(), value).is_some() {
                        return Err(serde::de::Error::custom(format!("{key:?} is there twice")));
                    }
                }
                Ok(Unique(found))
            }
        }
        from.deserialize_map(Keys(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_scope_counts() {
        let policy = Policy::parse(
            br#"{"default": [{"type": "reject"}], "transports": {"docker": {
                "r.io": [{"type": "insecureAcceptAnything"}],
                "r.io/bad": [{"type": "reject"}],
                "r.io/bad/good:1": [{"type": "insecureAcceptAnything"}],
                "*.example": [{"type": "insecureAcceptAnything"}]
            }, "oci": {"": [{"type": "insecureAcceptAnything"}]}}}"#,
        )
        .unwrap();
        let docker = |name: &str| policy.choose(&Origin::Docker(name.parse().unwrap()));
        for (name, scope, want) in [
            ("r.io/a:1", "transports.docker.\"r.io\"", Requirement::Anything),
            ("r.io/bad/a:1", "transports.docker.\"r.io/bad\"", Requirement::Reject),
            ("r.io/bad/good:1", "transports.docker.\"r.io/bad/good:1\"", Requirement::Anything),
            ("r.io/bad/good:2", "transports.docker.\"r.io/bad\"", Requirement::Reject),
            ("a.b.example/x", "transports.docker.\"*.example\"", Requirement::Anything),
            ("other.io/x", "default", Requirement::Reject),
        ] {
            assert_eq!(docker(name), (scope.to_owned(), vec![want]), "{name}");
        }
        let path = |transport| Origin::Path { transport, path: "/x".into(), image: None };
        assert_eq!(policy.choose(&path("oci")).1, [Requirement::Anything]);
        assert_eq!(policy.choose(&path("oci-archive")).1, [Requirement::Reject]);
    }

    #[test]
    fn what_is_no_policy_is_refused_whole() {
        let any = r#"{"type":"insecureAcceptAnything"}"#;
        for text in [
            "{}".to_owned(),
            r#"{"default": []}"#.to_owned(),
            r#"{"default": [{"type": "other"}]}"#.to_owned(),
            format!(r#"{{"default": [{any}], "more": 1}}"#),
            format!(r#"{{"default": [{any}], "default": [{any}]}}"#),
            format!(r#"{{"default": [{any}], "transports": {{"docker": {{"a": [{any}], "a": [{any}]}}}}}}"#),
            r#"{"default": [{"type": "insecureAcceptAnything", "x": 1}]}"#.to_owned(),
            r#"{"default": [{"type": "sigstoreSigned"}]}"#.to_owned(),
            r#"{"default": [{"type": "sigstoreSigned", "keyPath": "a", "keyData": "YQ=="}]}"#.to_owned(),
            r#"{"default": [{"type": "sigstoreSigned", "keyPath": "a", "signedIdentity": {"type": "no"}}]}"#.to_owned(),
        ] {
            assert!(Policy::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_checked_is_possible_for_no_image() {
        for text in [
            r#"{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/x"}"#,
            r#"{"type": "sigstoreSigned", "keyPath": "/x", "rekorPublicKeyPath": "/y"}"#,
            r#"{"type": "sigstoreSigned", "fulcio": {}}"#,
            r#"{"type": "reject"}"#,
        ] {
            let requirement = requirement(serde_json::from_str(text).unwrap()).unwrap();
            assert!(requirement.possible().is_err(), "{text}");
        }
    }
}
