%%% What the suites of `macula_quic' share: listeners and connections on loopback, streams with both
%%% ends in one test, processes that own things for as long as a test likes, and waiting.
-module(quic_ct).

-export([begin_test/0, certificates/1, server_options/0, server_options/1]).
-export([listen/0, listen/1, connect/1, connect/2, pair/0, pair/2, new_server/1]).
-export([streams/2, streams/3, raw_streams/0, frame_streams/0, keep/1, forget/0]).
-export([next/1, next/2, none/1, come/1, read/2, reader/1]).
-export([agent/0, in/2, tell/2, give_up/1, kill_socket/1]).
-export([frame/1, frame/2]).

%% Longer than anything takes on a busy machine: only a failing test ever waits for it.
-define(DEADLINE_MS, 20_000).
%% How long something that must not come is waited for.
-define(SILENCE_MS, 60).
-define(LOOPBACK, {127, 0, 0, 1}).

%% What a test makes belongs to its process, and goes with it.
begin_test() ->
    mesh_ct:forget_configuration(),
    process_flag(trap_exit, true),
    ok.

%%% Listeners and connections

%% A certificate of its own for the suites' listeners, once per suite: its files.
certificates(Config) ->
    Dir = proplists:get_value(priv_dir, Config),
    Files = quic_certs:self_signed(filename:join(Dir, "server")),
    persistent_term:put(?MODULE, Files),
    Config.

server_options() -> server_options([]).

server_options(More) ->
    {CertFile, KeyFile} = persistent_term:get(?MODULE),
    [{certfile, CertFile}, {keyfile, KeyFile} | More].

listen() -> listen([]).

listen(Options) ->
    {ok, Listener} = macula_quic:listen({?LOOPBACK, 0}, server_options(Options)),
    keep(Listener).

connect(Listener) -> connect(Listener, []).

connect(Listener, Options) ->
    {ok, {Address, Port}} = macula_quic:sockname(Listener),
    {ok, Connection} = macula_quic:connect(Address, Port, Options, ?DEADLINE_MS),
    Connection.

%% Both ends of one connection: the dialled and the accepted one. The listener goes with the test.
pair() -> pair([], []).

pair(ListenOptions, ConnectOptions) ->
    Listener = listen(ListenOptions),
    Client = connect(Listener, ConnectOptions),
    {Client, new_server(Listener)}.

new_server(Listener) ->
    {ok, Server} = macula_quic:accept(Listener, ?DEADLINE_MS),
    Server.

%%% Streams

%% Both ends of one stream. A stream begins with its first bytes, so one has passed: its next byte
%% is at offset 1. Its ends deliver bytes as they come.
streams(Opener, Acceptor) -> streams(Opener, Acceptor, raw).

streams(Opener, Acceptor, Packet) ->
    {ok, Near} = macula_quic:open_stream(Opener),
    ok = macula_quic:send(Near, <<0>>),
    {ok, Far} = macula_quic:accept_stream(Acceptor, ?DEADLINE_MS),
    [ok = macula_quic:setopt(Stream, packet, raw) || Stream <- [Near, Far]],
    {ok, <<0>>} = macula_quic:recv(Far, ?DEADLINE_MS),
    [ok = macula_quic:setopt(Stream, packet, Packet) || Stream <- [Near, Far]],
    {keep(Near), keep(Far)}.

%% Both ends of a stream on a connection of its own.
raw_streams() -> streams_of(pair(), raw).

frame_streams() -> streams_of(pair(), macula).

streams_of({Client, Server}, Packet) -> streams(Client, Server, Packet).

%% Keeps a handle until the test is over: a garbage collection would close what the test has named
%% for the last time.
keep(Handle) ->
    _ = put({?MODULE, Handle}, kept),
    Handle.

%% Keeps none any more.
forget() ->
    lists:foreach(fun erase/1, [Key || {{?MODULE, _} = Key, _} <- get()]).

%% What comes next of this handle, whatever it is: `{What, Detail}'.
next(Handle) -> next(Handle, ?DEADLINE_MS).

next(Handle, Ms) ->
    receive
        {quic, What, Handle, Detail} -> {What, Detail}
    after Ms ->
        error({nothing_came, process_info(self(), messages)})
    end.

%% Nothing comes of this handle.
none(Handle) ->
    receive
        {quic, _, Handle, _} = Message -> error({unexpected, Message})
    after ?SILENCE_MS -> ok
    end.

%% How many messages of this handle have come and are not taken yet.
come(Handle) ->
    {messages, Messages} = process_info(self(), messages),
    length([Message || {quic, _, H, _} = Message <- Messages, H =:= Handle]).

%% Has the kernel take the port of a UDP socket of this machine away.
kill_socket(Port) ->
    Command = " --kill --no-header --udp --all --numeric 'sport = :~b'",
    case os:find_executable("ss") of
        false ->
            {skip, "there is no ss here"};
        Ss ->
            Killed = os:cmd(Ss ++ lists:flatten(io_lib:format(Command, [Port]))),
            % It lists the sockets that it has killed.
            case string:find(Killed, "UNCONN") of
                nomatch -> {skip, "ss kills no sockets here: " ++ Killed};
                _ -> ok
            end
    end.

%% So many bytes of a passive stream.
read(_Stream, 0) ->
    <<>>;
read(Stream, Size) ->
    {ok, Data} = macula_quic:recv(Stream, ?DEADLINE_MS),
    <<Data/binary, (read(Stream, Size - byte_size(Data)))/binary>>.

%%% Processes that own things

%% A process that does what it is told, and ends with the test.
agent() ->
    Test = self(),
    spawn(fun() -> agent_loop(monitor(process, Test)) end).

agent_loop(Monitor) ->
    receive
        {Ref, From, Work} ->
            From ! {Ref, outcome(Work)},
            agent_loop(Monitor);
        {'DOWN', Monitor, process, _, _} ->
            ok
    end.

outcome(Work) ->
    try
        Work()
    catch
        Class:Reason:Stack -> {failed, Class, Reason, Stack}
    end.

%% A process in recv/2, and where its result comes.
reader(Stream) ->
    Agent = agent(),
    Reading = tell(Agent, fun() -> macula_quic:recv(Stream, infinity) end),
    mesh_wait:eventually(true, fun() -> is_reading(Agent) end),
    {Agent, Reading}.

is_reading(Pid) ->
    case process_info(Pid, [status, current_function]) of
        [{status, waiting}, {current_function, {macula_quic, _, _}}] -> true;
        _ -> false
    end.

%% What `Work' returns in the agent.
in(Agent, Work) ->
    Ref = tell(Agent, Work),
    receive
        {Ref, Result} -> Result
    after ?DEADLINE_MS -> error({never_returned, process_info(Agent, current_stacktrace)})
    end.

%% Lets the agent work; `{Ref, Result}' comes when it is done.
tell(Agent, Work) ->
    Ref = make_ref(),
    Agent ! {Ref, self(), Work},
    Ref.

%% Kills it, and waits until it is gone.
give_up(Agent) ->
    Monitor = monitor(process, Agent),
    exit(Agent, kill),
    receive
        {'DOWN', Monitor, process, Agent, _} -> ok
    end.

%%% Data

%% A protocol frame.
frame(Payload) -> frame(1, Payload).

frame(Type, Payload) ->
    <<1, Type, 0, 0, (byte_size(Payload)):32, Payload/binary>>.
