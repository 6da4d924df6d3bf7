"""What a conversation says of its commands."""

COMMANDS = """\
Available Commands:
  /set            Change how the session works
  /show           Show what is known of the model
  /load <model>   Go on with another model, or a saved session
  /save <model>   Save the session as a model
  /clear          Forget what was said
  /list           List the models in the store
  /bye, /exit     Leave
  /?, /help       This list; /? set and /? show tell more
  /? shortcuts    Keys

Use \"\"\" to begin a message of several lines, and to end it; what is pasted is one message.
"""
SET = """\
Available Commands:
  /set parameter <name> <value>   Set a parameter
  /set system <text>              Set the system message; \"\"\" for several lines
  /set history                    Remember what is typed
  /set nohistory                  Do not remember it
  /set wordwrap                   Break lines between words
  /set nowordwrap                 Let the terminal break lines
  /set format json                Answer in JSON
  /set noformat                   Answer freely
  /set think [level]              Think before answering, if the model can; levels are
                                  true, false, high, medium, low, max
  /set nothink                    Do not think
  /set verbose                    Show times after each answer
  /set quiet                      Show none
"""
SHOW = """\
Available Commands:
  /show info         What the model is
  /show license      Its licences
  /show modelfile    The Modelfile that makes it again
  /show parameters   Its parameters and those of the session
  /show system       The system message
  /show template     The prompt template
"""
SHORTCUTS = """\
Available keyboard shortcuts:
  Ctrl + a   To the beginning of the line (Home)
  Ctrl + e   To the end of the line (End)
   Alt + b   Back one word
   Alt + f   On one word
  Ctrl + k   Delete what is behind the cursor
  Ctrl + u   Delete what is before the cursor
  Ctrl + w   Delete the word before the cursor
  Ctrl + l   Clear the screen
  Ctrl + g   Go on in your editor ($EDITOR)
  Ctrl + r   Search in what was typed before
  Ctrl + c   Stop the answer, or drop the line
  Ctrl + d   Leave (/bye)
"""
PARAMETERS = """\
Available Parameters:
  /set parameter seed <int>               The same seed gives the same text
  /set parameter num_predict <int>        Tokens of an answer at most; -1: no limit
  /set parameter num_ctx <int>            Tokens of context
  /set parameter temperature <float>      How freely to pick; 0 takes the likeliest token
  /set parameter top_k <int>              Pick among that many tokens; 0: all
  /set parameter top_p <float>            Pick among the likeliest that reach this share
  /set parameter min_p <float>            Pick among those with this share of the likeliest's
  /set parameter repeat_penalty <float>   Above 1: repeat less
  /set parameter repeat_last_n <int>      Tokens that the penalty looks back at; -1: all
  /set parameter stop <text> <text> ...   End before any of these texts
"""
TOPICS = {"set": SET, "show": SHOW, "shortcuts": SHORTCUTS, "shortcut": SHORTCUTS}
