//! A store above another one does a part of what is asked of it otherwise, and leaves the rest to that.

/// Methods that are left to the store in the field that is named first.
macro_rules! forward {
    ($to:ident: $(fn $name:ident(&self $(, $arg:ident: $type:ty)*) $(-> $out:ty)?;)+) => {$(
        fn $name(&self $(, $arg: $type)*) $(-> $out)? {
            self.$to.$name($($arg),*)
        }
    )+};
}
pub(super) use forward;
