//! Decoders for manifest values (FORMAT.md J3) that are stricter than serde's own.

use crate::tracking::{Consistency, TrackerRecord};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use uuid::Uuid;

/// A value or null; but the key is there: one that is missing was lost.
pub(crate) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    Option::deserialize(from)
}

/// A UUID in its one text form (FORMAT.md C3): other programs know no other.
pub(crate) fn id<'de, D: Deserializer<'de>>(from: D) -> Result<Uuid, D::Error> {
    parse_id(&String::deserialize(from)?)
}

/// The same, or null.
pub(crate) fn id_or_null<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Uuid>, D::Error> {
    Option::<String>::deserialize(from)?.map(|text| parse_id(&text)).transpose()
}

/// A value, if the key is there: null is no value.
pub(crate) fn some<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

/// The same of a UUID.
pub(crate) fn some_id<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Uuid>, D::Error> {
    id(from).map(Some)
}

fn parse_id<E: Error>(text: &str) -> Result<Uuid, E> {
    let id = Uuid::parse_str(text).ok().filter(|id| id.to_string() == text);
    id.ok_or_else(|| E::custom("invalid id: expected 32 lower-case hexadecimal digits, 8-4-4-4-12"))
}

/// What is only a hint, and of a shape that we do not know, is none: a later version may know more.
pub(crate) fn or_none<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    from: D,
) -> Result<Option<T>, D::Error> {
    let value = serde_json::Value::deserialize(from)?;
    Ok(serde_json::from_value(value).ok())
}

/// What an image was when it was read. A later version may know more of them: nothing is promised then.
pub(crate) fn consistency<'de, D: Deserializer<'de>>(from: D) -> Result<Consistency, D::Error> {
    Ok(match serde_json::Value::deserialize(from)? {
        // Whether it was in use, as earlier programs wrote it.
        serde_json::Value::Bool(false) => Consistency::Stopped,
        value => serde_json::from_value(value).unwrap_or(Consistency::Crash),
    })
}

/// The record of a tracker; none of a kind that we do not know. Earlier programs knew one.
pub(crate) fn tracker<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<TrackerRecord>, D::Error> {
    let mut value = serde_json::Value::deserialize(from)?;
    if let Some(keys) = value.as_object_mut() {
        keys.entry("kind").or_insert_with(|| "clone".into());
    }
    Ok(serde_json::from_value(value).ok())
}

/// Where an image is, as a URI. Earlier programs knew paths only, and wrote them as they are.
pub(crate) mod image {
    use crate::base::error::ErrorKind;
    use crate::image::ImageUri;
    use serde::{Deserialize, Deserializer, Serializer};
    use std::path::Path;

    #[expect(clippy::ref_option, reason = "serde hands it so")]
    pub(crate) fn serialize<S: Serializer>(
        image: &Option<ImageUri>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match image {
            Some(image) => to.serialize_str(&image.to_wire()),
            None => to.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<ImageUri>, D::Error> {
        let Some(text) = Option::<String>::deserialize(from)? else { return Ok(None) };
        if text.starts_with('/') {
            return Ok(Some(Path::new(&text).into()));
        }
        match ImageUri::parse(Path::new(&text)) {
            Ok(image) if text.contains("://") => Ok(Some(image)),
            // Of a kind that a later program knows: this one does not find it.
            Err(e) if e.kind() == ErrorKind::Unsupported && text.contains("://") => Ok(None),
            _ => Err(serde::de::Error::custom("an image is named by a URI")),
        }
    }
}

/// A path as a percent-encoded URI: it need not be UTF-8. Earlier programs wrote it as it is.
pub(crate) mod path {
    use crate::base::uri::{Uri, file_uri};
    use serde::{Deserialize, Deserializer, Serializer};
    use std::path::{Path, PathBuf};

    #[expect(clippy::ref_option, reason = "serde hands it so")]
    pub(crate) fn serialize<S: Serializer>(
        path: &Option<PathBuf>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match path {
            Some(path) => to.serialize_str(&file_uri(path)),
            None => to.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<PathBuf>, D::Error> {
        let Some(text) = Option::<String>::deserialize(from)? else { return Ok(None) };
        if text.starts_with('/') {
            return Ok(Some(text.into()));
        }
        match Uri::parse(Path::new(&text)) {
            Ok(Uri::Path(path)) if text.starts_with("file:") => Ok(Some(path)),
            _ => Err(serde::de::Error::custom("a path is file:///PATH")),
        }
    }
}
