//! Requests are made by naming what is to be other than usual.

/// A method for each field, with its name, that sets it. A field that may be missing takes the bare value,
/// too.
macro_rules! setters {
    ($($(#[$doc:meta])* $field:ident: $type:ty),+ $(,)?) => {$(
        $(#[$doc])*
        #[must_use]
        pub fn $field(mut self, $field: impl Into<$type>) -> Self {
            self.$field = $field.into();
            self
        }
    )+};
}
pub(crate) use setters;
