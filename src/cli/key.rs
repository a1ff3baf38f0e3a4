//! `facewise key`: makes a key for those who ask the server.

use anyhow::Context as _;
use facewise::access::{Hash, Rate, Scope, generate};
use facewise_core::manifest::is_name;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Whose key it is; the log says so
    #[arg(value_name = "NAME", value_parser = name)]
    name: String,
    /// What it is good for, with commas between
    #[arg(long, value_name = "LIST", value_enum, value_delimiter = ',', default_value = "predict")]
    scopes: Vec<Scope>,
    /// How often it may be used, as in 10/s, 600/m or 5000/h [default: as often as the server can answer]
    #[arg(long, value_name = "RATE")]
    rate: Option<Rate>,
}

fn name(word: &str) -> Result<String, String> {
    if is_name(word) {
        Ok(word.to_owned())
    } else {
        Err("a name is 1 to 64 of a-z, 0-9, '-', '_' and '.', and starts with a letter or digit".into())
    }
}

/// Prints the key, and the lines by which the server knows it. The key itself is kept nowhere.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let Args { name, scopes, rate } = args;
    let key = generate().context("the system gives no random numbers")?;
    let scopes: Vec<String> = scopes.iter().map(|scope| format!("\"{}\"", scope.name())).collect();
    println!("{key}\n");
    println!("# The key above is shown this once. These lines belong at the end of facewise.toml:");
    println!("[[keys]]\nname = \"{name}\"\nsha256 = \"{}\"\nscopes = [{}]", Hash::of(&key), scopes.join(", "));
    if let Some(rate) = rate {
        println!("rate = \"{rate}\"");
    }
    Ok(())
}
