//! Profiles as JSON text, in and out, without losing what this version does not know.

use serde_json::{Map, Value};

use super::profile::{Profile, SCHEMA};

/// Why a text is no profile that this version can read.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("the profile is no JSON: {0}")]
    Json(serde_json::Error),
    #[error("the text is no slim profile: it has no \"schema\": \"{SCHEMA}\"")]
    NotAProfile,
    #[error(
        "the profile is of {found:?} and this slim reads {SCHEMA}; read it with a newer slim, or \
         trace the image again with this one"
    )]
    Newer { found: String },
    #[error("the profile has a field of the wrong form: {0}")]
    Form(serde_json::Error),
}

/// Major and minor version of a profile's schema name (`slim.profile/v1`, `slim.profile/v1.2`).
pub(super) fn version(name: &str) -> Option<(u64, u64)> {
    let text = name.strip_prefix("slim.profile/v")?;
    let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
    Some((major.parse().ok()?, minor.parse().ok()?))
}

impl Profile {
    /// Reads a profile. Fields that this version does not know are kept, wherever they are.
    pub fn parse(text: &[u8]) -> Result<Self, ProfileError> {
        let value: Value = serde_json::from_slice(text).map_err(ProfileError::Json)?;
        let found = value.get("schema").and_then(Value::as_str).ok_or(ProfileError::NotAProfile)?;
        match version(found).ok_or(ProfileError::NotAProfile)? {
            (1, _) => {}
            (0, _) => return Err(ProfileError::NotAProfile),
            _ => return Err(ProfileError::Newer { found: found.to_owned() }),
        }
        let mut profile: Self =
            serde_json::from_value(value.clone()).map_err(ProfileError::Form)?;
        let known = serde_json::to_value(&profile).map_err(ProfileError::Form)?;
        profile.unknown = beyond(&value, &known).unwrap_or_default();
        Ok(profile)
    }

    /// The profile as indented JSON with a final newline; equal profiles give equal bytes.
    pub fn to_json(&self) -> String {
        let mut value = serde_json::to_value(self).expect("a profile is plain data");
        overlay(&mut value, &self.unknown);
        let sorted = sort(value);
        format!("{}\n", serde_json::to_string_pretty(&sorted).expect("a value is plain data"))
    }
}

/// What `whole` has beyond `known`, by key; elements of arrays by their index. Values that differ
/// in form only (a field that was absent and has a default) are no difference.
fn beyond(whole: &Value, known: &Value) -> Option<Value> {
    let rest: Map<String, Value> = match (whole, known) {
        (Value::Object(whole), Value::Object(known)) => whole
            .iter()
            .filter_map(|(key, value)| {
                let rest = match known.get(key) {
                    Some(known) => beyond(value, known)?,
                    // An optional field that is null reads as absent.
                    None if value.is_null() => return None,
                    None => value.clone(),
                };
                Some((key.clone(), rest))
            })
            .collect(),
        (Value::Array(whole), Value::Array(known)) => (0..)
            .zip(whole.iter().zip(known))
            .filter_map(|(at, (w, k)): (usize, _)| Some((at.to_string(), beyond(w, k)?)))
            .collect(),
        _ => return None,
    };
    (!rest.is_empty()).then_some(Value::Object(rest))
}

/// Puts back what [`beyond`] found; what is there wins.
fn overlay(value: &mut Value, rest: &Value) {
    let Value::Object(rest) = rest else { return };
    for (key, more) in rest {
        match value {
            Value::Object(map) => match map.get_mut(key) {
                Some(there) => overlay(there, more),
                None => drop(map.insert(key.clone(), more.clone())),
            },
            Value::Array(items) => {
                if let Some(there) = key.parse().ok().and_then(|at: usize| items.get_mut(at)) {
                    overlay(there, more);
                }
            }
            _ => {}
        }
    }
}

/// Sorts the keys of maps; the fields that open a profile stay in front for the reader.
fn sort(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut pairs: Vec<(String, Value)> =
                map.into_iter().map(|(key, value)| (key, sort(value))).collect();
            let front = |key: &str| match key {
                "schema" => 0,
                "image" => 1,
                "runs" => 2,
                _ => 3,
            };
            pairs.sort_by(|(a, _), (b, _)| (front(a), a).cmp(&(front(b), b)));
            Value::Object(pairs.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sort).collect()),
        plain => plain,
    }
}
