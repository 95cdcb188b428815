//! What can be typed after `imgsnap config`.

use clap::Subcommand;

#[derive(Subcommand)]
pub enum Config {
    /// Print the configuration
    Show,
    /// Change the configuration in an editor: VISUAL, otherwise EDITOR, otherwise vi
    ///
    /// What is saved is checked. If there is a mistake in it nothing is changed, and the text is kept in a
    /// file that is named.
    Edit,
    /// Set one key, or take it away
    ///
    /// For example: prune.keep_daily 7, images."db".prune.keep_label '["pre-*"]', snapshot.track none,
    /// new.block_size 64K.
    Set {
        /// The key, with the tables that it is in
        key: String,
        /// A value as in TOML; anything else is a string
        #[arg(required_unless_present = "unset", allow_hyphen_values = true)]
        value: Option<String>,
        /// Take the key, or the table, away
        #[arg(long, conflicts_with = "value")]
        unset: bool,
    },
}
