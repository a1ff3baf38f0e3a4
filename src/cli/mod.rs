//! The command line: one file per subcommand. Exit codes: 0 done, 1 failed, 2 misused.

mod evaluate;
mod openapi;
mod predict;
mod serve;

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use facewise::config::{self, File};

/// Age, gender, smile and emotion from faces.
///
/// Every flag is also an environment variable, FACEWISE_ and its name, and a key of facewise.toml; flags come first, then
/// the environment, then the file.
#[derive(Parser)]
#[command(name = "facewise", version)]
struct Cli {
    /// File with settings [default: facewise.toml, if there is one]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answer over HTTP
    Serve(Box<serve::Args>),
    /// Tell about the faces in pictures
    #[command(mut_arg("log_level", |level| level.default_value("warn")))]
    Predict(Box<predict::Args>),
    /// Score a labelled set
    Evaluate(Box<evaluate::Args>),
    /// Print the description of the HTTP interface
    #[command(hide = true)]
    Openapi,
}

/// Runs the program.
pub(crate) fn main() -> ExitCode {
    let file = match File::read(config_file().as_deref()) {
        Ok(file) => file,
        Err(error) => return fail(&error.into(), 2),
    };
    let cli: Cli = match config::parse(env::args_os(), &file) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let done = match cli.command {
        Command::Serve(args) => serve::run(args.settings),
        Command::Predict(args) => predict::run(&args),
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Openapi => openapi::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

/// One sentence on standard error: the error and its causes, as far as the error does not quote them itself.
fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    let mut sentence = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !sentence.contains(&cause) {
            sentence = format!("{sentence}: {cause}");
        }
    }
    eprintln!("facewise: {sentence}");
    ExitCode::from(code)
}

/// The configuration file must be known before the flags can be parsed over it: a first, lenient look.
fn config_file() -> Option<PathBuf> {
    let command = config::layered(Cli::command(), &File::default()).ignore_errors(true);
    let matches = command.try_get_matches_from(env::args_os()).ok()?;
    matches
        .subcommand()
        .and_then(|(_, matches)| matches.get_one::<PathBuf>("config"))
        .or_else(|| matches.get_one::<PathBuf>("config"))
        .cloned()
}
